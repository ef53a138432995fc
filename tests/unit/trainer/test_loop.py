"""A step that is not finite ends the run on every worker, with the rows of the worker that met it (I8)."""

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
