"""Micro-batches in order, the same in sum for any number of workers, with answers asked ahead."""

import pytest
import torch

from trainer.batch import num_targets
from trainer.faculty import Answered
from trainer.feed import Feed, no_answers, with_answers
from trainer.order import SampleOrder
from trainer.peers import Peers
from trainer.samples import Samples, write_samples
from trainer.teacher import Targets

SAMPLES = [
    {"sample_id": 100 + i, "input_ids": list(range(2, 6 + i % 5)), "labels": [-100, -100, *range(4, 6 + i % 5)]}
    for i in range(30)
]


def feed(rank=0, world=1, micro_batch_tokens=24, packing="none", samples=SAMPLES):
    lengths = [len(sample["input_ids"]) for sample in SAMPLES]
    order = SampleOrder(lengths, seed=1, batch_tokens=96, max_length=16, packing_strategy=packing)
    return Feed(samples, order, Peers(rank, world), micro_batch_tokens, 0)


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


@pytest.mark.parametrize("packing", ["none", "bfd", "wrapped"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_together_see_every_sample_of_a_step_once(world, packing):
    whole = feed(packing=packing)
    for step in range(3):
        shares = [list(feed(rank, world, packing=packing).micro_batches(step, step + 1)) for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        ids = sorted(one for share in shares for micro in share for one in micro.batch.sample_ids)
        assert ids == sorted(100 + index for index in whole.order.global_batch(step).sample_ids)
        targets = sum(micro.batch.num_targets for share in shares for micro in share)
        assert targets == whole.num_targets(step)
        tokens = sum(int((micro.batch.segment_ids_BT > 0).sum()) for share in shares for micro in share)
        assert tokens == whole.num_tokens(step)
        assert [micro.last for micro in shares[0]] == [False] * (len(shares[0]) - 1) + [True]


@pytest.mark.parametrize("packing", ["none", "wrapped"])
def test_samples_of_any_workers_micro_batch_can_be_named(packing):
    for rank in range(2):
        for micro in feed(rank, 2, packing=packing).micro_batches(0, 1):
            assert feed(0, 2, packing=packing).sample_ids(0, rank, micro.place) == micro.batch.sample_ids


@pytest.mark.parametrize("packing", ["none", "bfd", "wrapped"])
def test_what_is_learned_of_samples_on_disk_is_counted_the_same(packing, tmp_path):
    write_samples(tmp_path, iter(SAMPLES))
    stored, listed = feed(packing=packing, samples=Samples(tmp_path)), feed(packing=packing)
    assert [stored.num_targets(step) for step in range(9)] == [listed.num_targets(step) for step in range(9)]


def test_the_cuts_of_an_epoch_cost_a_target_each_where_both_sides_are_learned():
    lost = []
    wrapped = feed(packing="wrapped")
    steps = range(wrapped.order.steps_per_epoch(0))
    for step in steps:
        for row in wrapped.order.global_batch(step).rows:
            lost += [SAMPLES[index]["labels"][start] != -100 for index, start, _ in row if start > 0]
    assert sum(wrapped.num_targets(step) for step in steps) == sum(map(num_targets, SAMPLES)) - sum(lost)
    assert 0 < sum(lost) < len(lost)


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
