"""What two workers agree on: figures, and that a step which is not finite for one of them ends the run of both (I8)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from workers import agree, fit_on_poison, in_turn, run_workers

from tests.tiny_jobs import distill_job, fine_tune_job
from trainer.job import JobContext
from trainer.models import fresh_model
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.prepared import Prepared


@dataclass(frozen=True)
class Agreed:
    root: Path
    poisoned: list[JobContext]


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> Agreed:
    """What one worker has said, and two, who then learn of a teacher that is not finite for one sample."""
    root = tmp_path_factory.mktemp("agreed")
    taught = fine_tune_job(root / "taught")
    prepare(taught)
    teacher_dir = root / "teacher"
    tokenizer = Prepared.open(taught).tokenizer
    fresh_model(taught.spec.student.config, tokenizer, 0).save_pretrained(teacher_dir)
    tokenizer.save_pretrained(teacher_dir)
    jobs = []
    for stage in range(4):
        training = {"micro_batch_tokens": 24, "zero_stage": stage, "max_steps": 20}
        jobs.append(distill_job(root / f"stage-{stage}", teacher_dir, training=training))
        prepare(jobs[-1])
    assert run_workers(agree, 1, root, root) == [0]
    works = [(agree, root), (fit_on_poison, jobs, len(tokenizer), 17)]
    assert run_workers(in_turn, 2, root, works) == [0, 0]
    return Agreed(root, jobs)


@pytest.mark.parametrize("world", [1, 2])
def test_peers_agree(world, agreed):
    for rank in range(world):
        found = json.loads((agreed.root / f"agreed-{world}-{rank}.json").read_text())
        assert found["sum"] == ([2.0, 1.0] if world == 2 else [1.0, 0.0])
        assert found["max"] == 4 + world
        assert found["any"] == [world == 2, False]
        assert found["broadcast"] == [{"ü": [0, None]}, None]
        assert found["first"] == (rank == 0)
        assert found["same"]


def test_a_worker_without_a_group_is_alone():
    assert Peers.of_process_group() == Peers.alone()
    assert Peers.alone().sum([2, 3]) == [2.0, 3.0]


def test_what_is_not_finite_for_one_worker_stops_both_before_the_update(agreed):
    assert len(agreed.poisoned) == 4
    for ctx in agreed.poisoned:
        told = [(ctx.job_dir / f"told-{rank}").read_text() for rank in range(2)]
        assert told[0] == told[1]
        assert told[0].startswith("NON_FINITE_LOSS student: the loss of step ")
        assert "Rows of the training data: 18." in told[0]
        step = int(told[0].split("the loss of step ")[1].split()[0])
        lines = [json.loads(line) for line in ctx.metrics_path("student").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, step))
        assert not ctx.model_dir("student").exists()
