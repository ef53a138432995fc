"""Micro-batches in order, the same in sum for any number of workers, with answers asked ahead."""

import pytest
import torch

from trainer.faculty import Answered
from trainer.feed import Feed, no_answers, with_answers
from trainer.order import SampleOrder
from trainer.peers import Peers
from trainer.teacher import Targets

SAMPLES = [
    {"sample_id": 100 + i, "input_ids": list(range(2, 6 + i % 5)), "labels": [-100, -100, *range(4, 6 + i % 5)]}
    for i in range(30)
]


def feed(rank=0, world=1, micro_batch_tokens=24):
    lengths = [len(sample["input_ids"]) for sample in SAMPLES]
    order = SampleOrder(lengths, seed=1, batch_tokens=96, max_length=16)
    return Feed(SAMPLES, order, Peers(rank, world), micro_batch_tokens, 0)


class Recorder:
    """Answers with the first token id of each batch; notes when it was asked."""

    def __init__(self, notes):
        self.notes = notes

    def request(self, batch):
        number = int(batch.input_ids_BT.sum())
        self.notes.append(("asked", number))

        def answer():
            self.notes.append(("answered", number))
            return [Answered(Targets(torch.full((batch.num_targets, 1), float(number))), None)]

        return answer


@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_together_see_every_sample_of_a_step_once(world):
    whole = feed()
    for step in range(3):
        shares = [list(feed(rank, world).micro_batches(step, step + 1)) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        ids = sorted(one for share in shares for micro in share for one in micro.batch.sample_ids)
        assert ids == sorted(100 + index for index in whole.order.global_batch(step).sample_ids)
        targets = sum(micro.batch.num_targets for share in shares for micro in share)
        assert targets == whole.num_targets(step)
        assert [micro.last for micro in shares[0]] == [False] * (len(shares[0]) - 1) + [True]


def test_samples_of_any_workers_micro_batch_can_be_named():
    for rank in range(2):
        for micro in feed(rank, 2).micro_batches(0, 1):
            assert feed(0, 2).sample_ids(0, rank, micro.place) == micro.batch.sample_ids


def test_tokens_of_a_step_are_those_of_its_samples():
    assert feed().num_tokens(0) == sum(
        int((micro.batch.segment_ids_BT > 0).sum()) for micro in feed().micro_batches(0, 1)
    )


@pytest.mark.parametrize("depth", [0, 1, 3, 64])
def test_answers_come_in_order_and_at_most_depth_ahead(depth):
    notes = []
    pairs = list(with_answers(feed().micro_batches(0, 4), Recorder(notes).request, depth))
    batches = [int(micro.batch.input_ids_BT.sum()) for micro, _ in pairs]
    assert batches == [int(micro.batch.input_ids_BT.sum()) for micro in feed().micro_batches(0, 4)]
    assert all((answer.targets.hidden_ND == number).all() for (_, [answer]), number in zip(pairs, batches, strict=True))
    ahead, most = 0, 0
    for note, _ in notes:
        ahead += 1 if note == "asked" else -1
        most = max(most, ahead)
    assert most == min(depth + 1, len(batches))


def test_without_a_teacher_there_are_no_targets():
    assert all(answers == [] for _, answers in with_answers(feed().micro_batches(0, 2), no_answers, 2))
