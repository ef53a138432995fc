"""A step that is not finite ends the run on every worker, with the rows of the worker that met it (I8).

And what is told of the others: how far, how fast, how long the rest takes.
"""

import json
import math

import pytest
import torch

from trainer.checkpoint import Progress
from trainer.errors import UserError
from trainer.feed import Feed
from trainer.listener import Silent
from trainer.loop import Run, run
from trainer.objective import CrossEntropy, Needs
from trainer.order import SampleOrder
from trainer.peers import Peers
from trainer.spec import CheckpointSpec, TrainingSpec
from trainer.step_log import StepLog

SAMPLES = [{"sample_id": 100 + i, "input_ids": [2, 3, 4, 5] * 2, "labels": [4, 5] * 4} for i in range(12)]
TRAINING = TrainingSpec(max_steps=3, batch_tokens=96, micro_batch_tokens=16)


class Healthy:
    """An engine whose losses and gradients are fine; counts its updates."""

    def __init__(self):
        self.updates = 0

    def forward(self, batch, answers, step):
        return {"loss": torch.tensor(1.5)}

    def backward(self, loss, *, last):
        assert torch.isfinite(loss)

    def grad_norm(self):
        return 1.0

    def step(self, learning_rate):
        self.updates += 1


class PoisonedPeer(Peers):
    """Stands for the other of two workers, whose second micro-batch has a loss that is not a number."""

    def sum(self, values):
        if len(values) == 2:  # the loss, and the wish to stop
            return [float("nan"), 0.0]
        flags = list(values)
        flags[len(flags) // 2 + 1] = 1.0
        return flags


def test_what_one_worker_meets_ends_the_other_before_its_update_with_the_rows_of_the_first():
    engine, order = Healthy(), SampleOrder([8] * len(SAMPLES), seed=1, batch_tokens=96, max_length=8)
    peers = PoisonedPeer(rank=0, world=2)
    feed = Feed(SAMPLES, order, peers, TRAINING.micro_batch_tokens, 0)
    this = Run(
        "student", engine, feed, TRAINING, CheckpointSpec(), 3, peers, CrossEntropy(9), None, Silent(), None, None
    )
    poisoned = [sample_id + 1 for sample_id in feed.sample_ids(0, 1, 1)]
    with pytest.raises(UserError, match="loss of step 1 is not finite") as error:
        run(this, Progress())
    assert len(poisoned) == 2
    assert f"Rows of the training data: {', '.join(map(str, sorted(poisoned)))}." in str(error.value)
    assert engine.updates == 0


def test_a_step_in_parts_is_no_whole_step():
    order = SampleOrder([8] * len(SAMPLES), seed=1, batch_tokens=96, max_length=8)
    feed = Feed(SAMPLES, order, Peers.alone(), TRAINING.micro_batch_tokens, 0)
    objective = CrossEntropy(9)
    objective.needs = Needs.WHOLE_STEP
    engine = Healthy()
    this = Run(
        "student", engine, feed, TRAINING, CheckpointSpec(), 3, Peers.alone(), objective, None, Silent(), None, None
    )
    with pytest.raises(UserError, match="step 1 does not fit one micro-batch") as error:
        run(this, Progress())
    assert error.value.reason == "STEP_DIVIDED"
    assert engine.updates == 0


class Clock:
    """Moves on by what the engine's steps take."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Timed(Healthy):
    """Whose steps take so many seconds, one after the other."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, iter(seconds)

    def step(self, learning_rate):
        self.clock.now += next(self.seconds)


class Heard(Silent):
    def __init__(self):
        self.told = {}

    def progress(self, stage, step, total, **figures):
        self.told[step] = figures


def told_of(seconds, tmp_path, first_step=0, **training):
    """What is told of steps that take so long: step -> figures."""
    total = first_step + len(seconds)
    order = SampleOrder([8] * len(SAMPLES), seed=1, batch_tokens=96, max_length=8)
    settings = TrainingSpec(max_steps=total, batch_tokens=96, micro_batch_tokens=96, **training)
    feed = Feed(SAMPLES, order, Peers.alone(), settings.micro_batch_tokens, 0)
    clock, heard = Clock(), Heard()
    this = Run(
        *("student", Timed(clock, seconds), feed, settings, CheckpointSpec(every_steps=10_000), total, Peers.alone()),
        *(CrossEntropy(9), None, heard, StepLog(tmp_path / "metrics.jsonl", step=first_step), None),
        clock=clock,
    )
    run(this, Progress(step=first_step, tokens=0, seconds=1e6 if first_step else 0.0))
    return heard.told


def test_the_time_left_is_told_when_enough_was_seen_and_does_not_jump(tmp_path):
    """The first step builds kernels, another one waits for a restarted teacher."""
    seconds = [90.0] + [1.0] * 39
    seconds[30] = 300.0
    told = told_of(seconds, tmp_path, logging_steps=1)
    assert [math.isnan(told[step]["eta_s"]) for step in (1, 5, 6)] == [True, True, False]
    for step in range(7, 40):
        assert told[step]["eta_s"] == pytest.approx(40 - step, rel=0.126)


def test_the_time_left_after_a_resume_is_of_the_steps_since_then(tmp_path):
    told = told_of([2.0] * 20, tmp_path, first_step=1000, logging_steps=10)
    assert told[1010]["eta_s"] == pytest.approx(20.0)


def test_long_steps_are_told_of_between_the_lines_of_the_log(tmp_path):
    told = told_of([6.0] * 12, tmp_path, logging_steps=10)
    assert list(told) == [2, 4, 6, 8, 10, 12]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [10, 12]
    speeds = {round(figures["tokens_per_second"], 6) for figures in told.values()}
    assert len(speeds) == 1
