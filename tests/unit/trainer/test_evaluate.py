"""Evaluation against models made of a rule: what is asked, in which batches, and what is kept."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Barrier

import pytest
import torch
from finished_job import distill_job, finetune_job

from trainer.evaluate import EvaluationSet, batches, deal, evaluate, is_exact_match
from trainer.listener import Silent
from trainer.models import fresh_model, load_model
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.report import count_parameters
from trainer.samples import Prompt
from trainer.teacher import TeacherModel
from trainer.transfer import read_answers, summary

PAD = 0


@dataclass(frozen=True)
class ThreadPeers:
    """Peers that are threads of this process and meet at one barrier."""

    rank: int
    world: int
    meeting: Barrier

    @property
    def is_first(self):
        return self.rank == 0

    def barrier(self):
        self.meeting.wait(timeout=30)

    def any(self, flag):
        self.barrier()
        return flag


class Progress(Silent):
    def __init__(self):
        self.seen = []

    def progress(self, stage, step, total, **figures):
        self.seen.append((stage, step, total))


class RuleModel:
    """Answers every prompt with its own tokens but the first; a learned token costs a tenth of its id."""

    def __init__(self):
        self.asked, self.scored = [], []

    def generate(self, prompts, max_new_tokens):
        self.asked.append(len(prompts))
        return [list(prompt[1:])[:max_new_tokens] for prompt in prompts]

    def score(self, batch):
        self.scored.append(batch.sample_ids)
        sums = [[0.0, 0] for _ in batch.sample_ids]
        for owner, token in zip(batch.owners_N().tolist(), batch.target_ids_N.tolist(), strict=True):
            sums[owner][0] += token / 10
            sums[owner][1] += 1
        return [tuple(entry) for entry in sums]


def decode(token_ids):
    return " ".join(map(str, token_ids))


def evaluation_set(num_samples=10):
    """Sample i: i + 2 tokens 1, 2, ...; the last two of them are learned. Odd ones have a reference that is wrong."""
    prompts, samples = [], []
    for i in range(num_samples):
        ids = list(range(1, i + 3))
        reference = decode(ids[1:]) if i % 2 == 0 else "elsewhere"
        prompts.append(Prompt(10 * i, tuple(ids), f"prompt {i}", reference))
        samples.append({"sample_id": 10 * i, "input_ids": ids, "labels": [-100] * i + ids[i:]})
    return EvaluationSet(prompts, samples, decode, PAD)


def run(ctx, data, *, model=None, peers=None, listener=None, role="student"):
    model = model or RuleModel()
    evaluate(ctx, role, data, model.generate, model.score, peers or Peers.alone(), listener or Silent())
    return model


def lines_of(ctx, role="student"):
    return [json.loads(line) for line in ctx.evaluation_path(role).read_text().splitlines()]


def test_prompts_that_leave_no_room_for_an_answer_are_left_out():
    prompts = [Prompt(at, tuple(range(length)), "", "yes") for at, length in enumerate((4, 6, 7))]
    questions = EvaluationSet(prompts, [], str, 0)
    assert [one.sample_id for one in questions.with_room(10, 4).prompts] == [0, 1]
    assert questions.with_room(None, 4).prompts == prompts


def test_every_sample_has_one_line_in_order_of_its_id(tmp_path):
    ctx = distill_job(tmp_path)
    run(ctx, evaluation_set())
    lines = lines_of(ctx)
    assert [line["sample_id"] for line in lines] == [10 * i for i in range(10)]
    assert [line["exact_match"] for line in lines] == [True, False] * 5
    assert lines[2] == {
        "sample_id": 20,
        "prompt": "prompt 2",
        "reference": "2 3 4",
        "completion": "2 3 4",
        "exact_match": True,
        "nll": pytest.approx(0.3 + 0.4),
        "tokens": 2,
    }


def test_the_first_token_is_never_scored(tmp_path):
    ctx = distill_job(tmp_path)
    run(ctx, evaluation_set(1))
    assert (lines_of(ctx)[0]["nll"], lines_of(ctx)[0]["tokens"]) == (pytest.approx(0.2), 1)


@pytest.mark.parametrize("world", [2, 3, 16])
def test_any_number_of_ranks_measures_the_same_in_lockstep(tmp_path, world):
    alone, together = distill_job(tmp_path / "alone"), distill_job(tmp_path / "together")
    run(alone, evaluation_set())
    models, meeting = [RuleModel() for _ in range(world)], Barrier(world)
    with ThreadPoolExecutor(world) as pool:
        peers = [ThreadPeers(rank, world, meeting) for rank in range(world)]
        list(pool.map(lambda p: run(together, evaluation_set(), model=models[p.rank], peers=p), peers))
    assert lines_of(together) == lines_of(alone)
    assert len({len(model.asked) for model in models}) == 1
    assert len({len(model.scored) for model in models}) == 1
    assert not list(together.evaluation_path("student").parent.glob("parts/*"))


def test_what_is_evaluated_already_is_left_alone(tmp_path):
    ctx = distill_job(tmp_path)
    run(ctx, evaluation_set())
    before = ctx.evaluation_path("student").read_bytes()
    assert run(ctx, evaluation_set(3)).asked == []
    assert ctx.evaluation_path("student").read_bytes() == before


@pytest.mark.parametrize(("metric", "absent"), [("exact_match", "nll"), ("perplexity", "completion")])
def test_only_what_is_asked_for_is_measured(tmp_path, metric, absent):
    ctx = distill_job(tmp_path, metrics=[metric])
    run(ctx, evaluation_set())
    assert len(lines_of(ctx)) == 10
    assert all(absent not in line for line in lines_of(ctx))


def test_prompts_without_a_reference_are_not_asked(tmp_path):
    ctx = distill_job(tmp_path)
    prompts = [Prompt(0, (1, 2), "known", "2"), Prompt(1, (1, 2), "unknown", None)]
    model = run(ctx, EvaluationSet(prompts, [], decode, PAD))
    assert sum(model.asked) == 1
    assert [line["prompt"] for line in lines_of(ctx)] == ["known"]


def test_no_evaluation_data_gives_an_empty_file(tmp_path):
    ctx = distill_job(tmp_path)
    model = run(ctx, EvaluationSet([], [], decode, PAD))
    assert (model.asked, model.scored) == ([], [])
    assert lines_of(ctx) == []
    assert read_answers(ctx.job_dir) == {}


def test_progress_ends_at_its_total(tmp_path):
    listener = Progress()
    run(distill_job(tmp_path), evaluation_set(), listener=listener)
    stages, steps, totals = zip(*listener.seen, strict=True)
    assert set(stages) == {"evaluate student"}
    assert steps == tuple(range(1, totals[0] + 1))


def test_the_lines_carry_through_to_the_figures(tmp_path):
    ctx = distill_job(tmp_path)
    for role in ("teacher", "student"):
        run(ctx, evaluation_set(), role=role)
    figures = summary(ctx)
    assert figures["samples"] == 10
    assert figures["metrics"]["student"]["exact_match"] == 0.5
    assert figures["retention"] == 1.0


@pytest.mark.parametrize(
    ("completion", "reference", "equal"),
    [
        ("yes", "yes", True),
        (" yes\n", "yes", True),
        ("a  b\tc", "a b c", True),
        ("Yes", "yes", False),
        ("yes.", "yes", False),
        ("", "", True),
        ("", "yes", False),
    ],
)
def test_exact_match_forgives_white_space_only(completion, reference, equal):
    assert is_exact_match(completion, reference) is equal


def test_batches_hold_every_index_once_within_the_budget():
    lengths = [5, 100, 7, 7, 3, 50, 1, 64]
    found = batches(lengths, 64)
    assert sorted(index for batch in found for index in batch) == list(range(8))
    for batch in found:
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= 64
    assert batches([], 64) == []


def test_deal_gives_every_rank_as_many_rounds():
    hands = [deal([[0], [1], [2], [3]], Peers(rank, 3)) for rank in range(3)]
    assert hands == [[[0], [3]], [[1], []], [[2], []]]


def test_a_real_model_on_prepared_data(tmp_path):
    """From a CSV to figures: the model is random, so it is wrong, and about as surprised as its vocabulary is large."""
    data = tmp_path / "data.csv"
    data.write_text("prompt,completion\n" + "".join(f"question number {i},answer {i % 3}\n" for i in range(12)))
    ctx = finetune_job(tmp_path, max_new_tokens=4, max_samples=9)
    source = ctx.spec.data.model_copy(update={"train": str(data), "eval": str(data)})
    ctx = replace(ctx, spec=ctx.spec.model_copy(update={"data": source}))
    prepared = prepare(ctx)
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    fresh = fresh_model(config | {"num_attention_heads": 2}, prepared.tokenizer, seed=1)
    for part in (fresh, prepared.tokenizer):
        part.save_pretrained(ctx.model_dir("student"))
    model = TeacherModel(str(ctx.model_dir("student")), dtype="float32")
    evaluate(ctx, "student", EvaluationSet.of(prepared), model.generate, model.score, Peers.alone(), Silent())
    lines = lines_of(ctx)
    assert [line["reference"] for line in lines] == [f"answer {i % 3}" for i in range(9)]
    assert "question number 3" in lines[3]["prompt"]
    figures = summary(ctx)["metrics"]["student"]
    assert figures["exact_match"] == 0
    assert figures["perplexity"] == pytest.approx(len(prepared.tokenizer), rel=0.2)
    whole = load_model(str(ctx.model_dir("student")), torch.float32)
    assert count_parameters(ctx.model_dir("student")) == whole.num_parameters()
