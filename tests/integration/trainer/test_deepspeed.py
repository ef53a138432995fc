"""Learning under the real DeepSpeed: one worker or two, ZeRO 0 to 3, whole or killed, the weights are the same."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from workers import (
    SLOPES,
    add_gradients_up,
    fit_all,
    fit_until_killed,
    fit_with_a_stop,
    in_turn,
    keep_frequencies,
    run_workers,
)

from tests.tiny_jobs import TINY_LLAMA, fine_tune_job
from trainer.job import JobContext
from trainer.prepare import prepare

CASES = {
    **{f"fp32-{stage}": {"zero_stage": stage} for stage in range(4)},
    **{f"bf16-{stage}": {"zero_stage": stage, "precision": "bf16"} for stage in range(4)},
}
CHECKPOINTED = {name: {**training, "gradient_checkpointing": True} for name, training in CASES.items()}
OFFLOADED = {name: {**training, "offload_optimizer": "cpu"} for name, training in CASES.items() if name[-1] != "0"}
ADDED = {**CASES, **{f"{name}-host": training for name, training in OFFLOADED.items()}}
TIED = {"config": {**TINY_LLAMA, "tie_word_embeddings": True}, "tokenizer": {"vocab_size": 320}}


def make_jobs(root: Path, cases: dict[str, dict[str, Any]] = CASES, **changes: dict[str, Any]) -> dict[str, JobContext]:
    """The same job for each case, with more than one micro-batch in a step; prepared once and copied."""
    first = fine_tune_job(root / "first", training={"micro_batch_tokens": 96}, **changes)
    prepare(first)
    jobs = {}
    for name, training in cases.items():
        ctx = fine_tune_job(root / name, training={"micro_batch_tokens": 96, **training}, **changes)
        spec = ctx.spec.model_copy(update={"data": first.spec.data})
        shutil.copytree(first.prepared_dir, ctx.prepared_dir)
        jobs[name] = JobContext(ctx.job_dir, ctx.kind, spec)
    return jobs


def weights(ctx: JobContext) -> dict[str, torch.Tensor]:
    return load_file(ctx.model_dir("student") / "model.safetensors")


def losses(ctx: JobContext) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in ctx.metrics_path("student").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines]


def assert_same_bits(one: JobContext, other: JobContext) -> None:
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())
    assert losses(one) == losses(other)


def assert_close(one: JobContext, other: JobContext, *, weight: float, loss: float) -> None:
    assert weights(one).keys() == weights(other).keys()
    for name, tensor in weights(one).items():
        torch.testing.assert_close(tensor, weights(other)[name], rtol=0.0, atol=weight)
    assert [x for pair in losses(one) for x in pair] == pytest.approx([x for p in losses(other) for x in p], rel=loss)


Jobs = dict[str, JobContext]


@dataclass(frozen=True)
class Twice:
    """The same jobs whole, and stopped and taken up again."""

    whole: Jobs
    cut: Jobs

    def works(self) -> list[tuple[Any, ...]]:
        return [(fit_all, list(self.whole.values())), (fit_with_a_stop, list(self.cut.values()))]


def twice(root: Path, cases: dict[str, dict[str, Any]], **changes: dict[str, Any]) -> Twice:
    return Twice(make_jobs(root / "whole", cases, **changes), make_jobs(root / "cut", cases, **changes))


@dataclass(frozen=True)
class Learned:
    """All that was done by the same workers: one start of theirs takes as long as dozens of these jobs."""

    root: Path
    """And what one step of sums has left."""
    plain: Twice
    checkpointed: Jobs
    host: Twice
    wrapped: Twice
    world: int

    @classmethod
    def planned(cls, root: Path, world: int) -> Learned:
        wrapped = twice(root / "wrapped", {"fp32-2": CASES["fp32-2"]}, data={"packing_strategy": "wrapped"})
        checkpointed, host = make_jobs(root / "checkpointed", CHECKPOINTED), twice(root / "host", OFFLOADED)
        return cls(root, twice(root / "plain", CASES), checkpointed, host, wrapped, world)

    def works(self) -> list[tuple[Any, ...]]:
        fits = [*self.plain.works(), *self.host.works(), *self.wrapped.works()]
        return [(add_gradients_up, ADDED, self.root), *fits, (fit_all, list(self.checkpointed.values()))]


@dataclass(frozen=True)
class Alone:
    """What one worker does besides."""

    learned: Learned
    by_torch: Jobs
    """By the plain engine, whole, before DeepSpeed is there."""
    tied: Twice


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    root = tmp_path_factory.mktemp("alone")
    by_torch = make_jobs(root / "torch", {name: CASES[name] for name in ("fp32-0", "bf16-0")})
    whole_fp32 = {name: training for name, training in CASES.items() if name.startswith("fp32")}
    done = Alone(Learned.planned(root, 1), by_torch, twice(root / "tied", whole_fp32, student=TIED))
    in_bf16 = [ctx for name, ctx in done.learned.plain.whole.items() if name.startswith("bf16")]
    first, last = (fit_all, list(by_torch.values()), "torch"), (keep_frequencies, in_bf16)
    assert run_workers(in_turn, 1, root, [first, *done.learned.works(), *done.tied.works(), last]) == [0]
    return done


@dataclass(frozen=True)
class Together:
    """What two workers do besides: at the end the first of them is killed."""

    learned: Learned
    killed: JobContext


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Together:
    root = tmp_path_factory.mktemp("together")
    done = Together(Learned.planned(root, 2), make_jobs(root / "killed", {"fp32-2": CASES["fp32-2"]})["fp32-2"])
    codes = run_workers(in_turn, 2, root, [*done.learned.works(), (fit_until_killed, done.killed, 5)])
    assert codes[0] == -signal.SIGKILL
    return done


@pytest.fixture
def by_one(one_worker: Alone) -> Learned:
    return one_worker.learned


@pytest.fixture
def by_two(two_workers: Together) -> Learned:
    return two_workers.learned


@pytest.fixture
def alone(by_one: Learned) -> Jobs:
    """By one worker, whole."""
    return by_one.plain.whole


@pytest.fixture
def together(by_two: Learned) -> Jobs:
    """By two workers, whole."""
    return by_two.plain.whole


@pytest.mark.parametrize("stage", range(4))
def test_deepspeed_equals_plain_torch_on_one_worker(alone, one_worker, stage):
    by_torch = one_worker.by_torch
    # Adam divides by the root of squared gradients: rounding of clipping shows in the weights as about 1e-5.
    assert_close(alone[f"fp32-{stage}"], by_torch["fp32-0"], weight=5e-5, loss=1e-5)
    assert_close(alone[f"bf16-{stage}"], by_torch["bf16-0"], weight=1e-3, loss=0.005)


def test_bfloat16_leaves_rotary_frequencies_as_the_served_model_has_them(alone):
    for stage in range(4):
        before, kept = torch.load(alone[f"bf16-{stage}"].job_dir / "frequencies")
        assert torch.equal(kept, before)


@pytest.mark.parametrize("workers", ["by_one", "by_two"])
def test_gradients_of_micro_batches_add_up_in_float32_and_are_clipped_as_one(workers, request):
    jobs: Learned = request.getfixturevalue(workers)
    for name in ADDED:
        shares = [load_file(jobs.root / f"{name}-{rank}.safetensors") for rank in range(jobs.world)]
        norms = [share.pop("norm").item() for share in shares]
        beside = [share.pop("beside").item() for share in shares]
        assert norms == pytest.approx([sum(SLOPES) * 38**0.5] * jobs.world, rel=1e-6), name
        parts = shares[:1] if name[-1] == "0" else shares
        moments = torch.cat([part.flatten() for share in parts for part in share.values()])
        moments = moments[moments != 0.0]  # shares are padded
        assert len(moments) == 38, name
        assert name != "bf16-1" or beside == [0] * jobs.world, "added up in float32, and kept in bfloat16 besides"
        torch.testing.assert_close(moments, torch.full((38,), 0.1 / 38**0.5), rtol=1e-4, atol=0.0, msg=name)


@pytest.mark.parametrize("stage", range(4))
def test_two_workers_equal_one(alone, together, stage):
    assert_close(together[f"fp32-{stage}"], alone[f"fp32-{stage}"], weight=5e-5, loss=1e-5)
    assert_close(together[f"bf16-{stage}"], alone[f"bf16-{stage}"], weight=0.05, loss=0.02)


@pytest.mark.parametrize("workers", ["by_one", "by_two"])
def test_stopped_and_resumed_equals_never_stopped_in_every_stage(workers, request):
    jobs: Learned = request.getfixturevalue(workers)
    for name, ctx in jobs.plain.cut.items():
        assert_same_bits(ctx, jobs.plain.whole[name])


def test_killed_and_resumed_equals_never_killed(together, two_workers, tmp_path):
    """By new processes. Other stages and single workers: `make chaos`."""
    ctx = two_workers.killed
    assert not ctx.model_dir("student").exists()
    assert max(path.name for path in ctx.checkpoints_dir("student").iterdir()) == "step-00000004"
    assert run_workers(fit_all, 2, tmp_path, [ctx]) == [0, 0]
    assert_same_bits(ctx, together["fp32-2"])


def test_tied_weights_are_learned_and_resumed_in_every_stage(one_worker):
    tied: Twice = one_worker.tied
    assert tied.whole.keys() == {f"fp32-{stage}" for stage in range(4)}
    for name, ctx in tied.whole.items():
        assert_same_bits(tied.cut[name], ctx)
        assert_close(ctx, tied.whole["fp32-0"], weight=5e-5, loss=1e-5)


@pytest.mark.parametrize("workers", ["by_one", "by_two"])
def test_gradient_checkpointing_changes_no_bit_in_any_stage(workers, request):
    jobs: Learned = request.getfixturevalue(workers)
    for name, ctx in jobs.checkpointed.items():
        assert_same_bits(ctx, jobs.plain.whole[name])


@pytest.mark.parametrize("workers", ["by_one", "by_two"])
def test_an_optimizer_on_the_host_learns_the_same_and_is_resumed_to_the_bit(workers, request):
    jobs: Learned = request.getfixturevalue(workers)
    for name, ctx in jobs.host.whole.items():
        assert_same_bits(jobs.host.cut[name], ctx)
        # DeepSpeed takes the norm that it clips by tensor by tensor there: it is rounded elsewhere.
        tolerance = {"weight": 5e-5, "loss": 1e-5} if name.startswith("fp32") else {"weight": 0.004, "loss": 0.01}
        assert_close(ctx, jobs.plain.whole[name], **tolerance)


def test_two_workers_learn_wrapped_rows_as_one_does_and_are_resumed(by_one, by_two):
    assert_close(by_two.wrapped.whole["fp32-2"], by_one.wrapped.whole["fp32-2"], weight=5e-5, loss=1e-5)
    for jobs in (by_one, by_two):
        assert_same_bits(jobs.wrapped.cut["fp32-2"], jobs.wrapped.whole["fp32-2"])
