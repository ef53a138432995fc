"""The parts of the benchmarks that only calculate: spread, ceiling, timing, and which side is the headline."""

import json
from pathlib import Path

import pytest

from benchmarks import distill_step
from benchmarks.distillation.actors import _write_attempt
from benchmarks.distillation.step import (
    STUDENT,
    TEACHER,
    Product,
    Shape,
    ceiling_share,
    flops_per_token,
    gemm_rate,
    price_bound,
    products,
)
from benchmarks.distillation.workload import Steps, Workload
from benchmarks.measure import Spread, medians_and_spread, ratios, rounded

TINY = Shape(hidden_size=4, intermediate_size=6, num_hidden_layers=2, num_attention_heads=1, vocab_size=10)


def test_spread_is_the_median_and_the_ends() -> None:
    assert Spread.of([3.0, 1.0, 2.0]).document() == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}


def test_ratios_compare_what_was_measured_side_by_side() -> None:
    drifting = ratios([10.0, 20.0, 40.0], [5.0, 10.0, 20.0])
    assert drifting == Spread(2.0, 2.0, 2.0, 3)
    with pytest.raises(ValueError, match="zip"):
        ratios([1.0], [1.0, 2.0])


def test_what_is_told_are_medians_with_the_ends_beside_them() -> None:
    told = medians_and_spread({"n": 2, "ours": {"side": "torch", "speed": Spread.of([1.0, 3.0]).document()}})
    assert told == {"n": 2, "ours": {"side": "torch", "speed": 2.0}, "spread": {"ours.speed": [1.0, 3.0]}}


def test_rounding_keeps_four_digits() -> None:
    assert rounded(3420.449) == 3420.0
    assert rounded(0.00123456) == 0.001235


def test_parameters_are_counted_as_they_are_multiplied() -> None:
    attention, mlp, head = 4 * 4 * 4, 3 * 4 * 6, 4 * 10
    assert TINY.num_multiplied == 2 * (attention + mlp) + head


def test_the_models_have_the_size_that_they_are_said_to_have() -> None:
    transformers = pytest.importorskip("transformers")
    for shape, millions in ((TEACHER, 33), (STUDENT, 7)):
        config = transformers.LlamaConfig(
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            vocab_size=shape.vocab_size,
            tie_word_embeddings=True,
        )
        import torch

        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
        assert shape.num_multiplied == matrices
        assert round(matrices / 1e6) == millions


def test_products_of_a_step_have_the_flops_of_its_tokens() -> None:
    rows = 16
    taught, supervised = products(TEACHER, STUDENT, rows), products(None, STUDENT, rows)
    assert sum(one.flops for one in taught) == rows * flops_per_token(TEACHER, STUDENT)
    assert sum(one.flops for one in supervised) == rows * flops_per_token(None, STUDENT)
    assert flops_per_token(TEACHER, STUDENT) == 2 * TEACHER.num_multiplied + 6 * STUDENT.num_multiplied


def test_the_gemm_rate_is_that_of_all_products_in_a_row() -> None:
    fast, slow = Product("forward", 10, 10, 10, count=3), Product("weight", 10, 10, 20, count=1)
    assert (fast.flops, slow.flops) == (6000, 4000)
    assert gemm_rate([fast, slow], {fast.name: 1.0, slow.name: 2.0}) == pytest.approx(10_000 / 5)


def test_a_step_at_the_ceiling_has_all_of_it() -> None:
    step, tokens = products(TEACHER, STUDENT, 100), 100
    seconds = {one.name: 0.001 for one in step}
    alone_s = sum(one.count * 0.001 for one in step)
    share = ceiling_share(tokens / alone_s, flops_per_token(TEACHER, STUDENT), gemm_rate(step, seconds))
    assert share == pytest.approx(1.0)


def test_being_taught_may_cost_the_teachers_flops_and_a_twentieth() -> None:
    bound = flops_per_token(TEACHER, STUDENT) / flops_per_token(None, STUDENT) + 0.05
    assert price_bound(TEACHER, STUDENT) == pytest.approx(bound)


def test_steps_before_and_after_the_clock_do_not_count() -> None:
    steps = Steps(warmup=2, timed=3, tail=1)
    ends = [100.0, 200.0, 201.0, 202.0, 206.0, 900.0]
    assert steps.total == len(ends)
    assert steps.seconds_per_step(ends) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("deepspeed", "torch", "headline"),
    [(100.0, 100.0, "process_deepspeed"), (99.0, 100.0, "process_deepspeed"), (90.0, 100.0, "process_torch")],
)
def test_the_headline_is_the_default_engine_unless_it_is_slower(deepspeed: float, torch: float, headline: str) -> None:
    summary = distill_step.summary(_runs(process_deepspeed=deepspeed, process_torch=torch, trl=50.0), {})
    assert summary["ours"]["side"] == headline


def test_the_peer_is_taken_at_its_best() -> None:
    summary = distill_step.summary(_runs(process_deepspeed=100.0, trl=40.0, trl_checkpointing=50.0), {})
    assert summary["trl"]["side"] == "trl_checkpointing"
    assert summary["ratio"]["tokens_per_s"]["median"] == 2.0


def test_a_loss_that_is_another_one_is_said_to_be() -> None:
    runs = _runs(process_deepspeed=100.0, trl=50.0)
    assert distill_step.summary(runs, {})["loss"]["equal_within_bf16"] is True
    runs["trl"][0]["losses"] = [1.01]
    assert distill_step.summary(runs, {})["loss"]["equal_within_bf16"] is False


def test_the_table_names_every_side_and_ratio() -> None:
    runs = _runs(process_deepspeed=100.0, trl=50.0, supervised_deepspeed=300.0)
    words = distill_step.table(distill_step.summary(runs, {}))
    for name in ("process_deepspeed", "trl", "peak_memory", "taught_to_supervised", "ceiling_share"):
        assert f"\n{name} " in words


def _runs(**tokens_per_s: float) -> dict[str, list[distill_step.Run]]:
    """One repetition of sides with these speeds, and of the ceiling."""
    found: dict[str, list[distill_step.Run]] = {
        name: [{"seconds_per_step": distill_step.TOKENS / speed, "losses": [1.0], "peak_mib": 100.0}]
        for name, speed in tokens_per_s.items()
    }
    seconds = {one.name: 0.001 for one in products(TEACHER, STUDENT, distill_step.TOKENS)}
    return {**found, "matmul": [{"seconds": seconds}]}


def test_the_attempt_of_the_actors_is_one_that_the_driver_reads(tmp_path: Path) -> None:
    work = Workload(tmp_path)
    (tmp_path / "steps.json").write_text(json.dumps({"warmup": 1, "timed": 2}))
    attempt = _write_attempt(tmp_path / "storage", work.spec(taught=True))
    assert attempt.ctx.spec.training.max_steps == 6
    assert attempt.control_planes == ("127.0.0.1:9",)
