"""I3's ground: targets never cross samples, packed samples do not see each other, padding is inert."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import NOT_LEARNED, ROW_MULTIPLE, Batch, Sample, collate, empty_batch

PAD = 0


def sample(index: int, ids: list[int], learned: list[bool]) -> Sample:
    labels = [token if is_learned else NOT_LEARNED for token, is_learned in zip(ids, learned, strict=True)]
    return Sample(sample_id=100 + index, input_ids=ids, labels=labels)


tokens = st.lists(st.tuples(st.integers(0, 50), st.booleans()), min_size=1, max_size=20)
rows_of_tokens = st.lists(st.lists(tokens, min_size=1, max_size=4), min_size=1, max_size=4)


def packed(rows: list[list[list[tuple[int, bool]]]]) -> tuple[list[list[int]], list[Sample]]:
    samples: list[Sample] = []
    places = []
    for row in rows:
        places.append(list(range(len(samples), len(samples) + len(row))))
        samples += [
            sample(at, [t for t, _ in one], [learned for _, learned in one])
            for at, one in zip(places[-1], row, strict=True)
        ]
    return places, samples


@settings(deadline=None)
@given(rows_of_tokens)
def test_what_is_learned_is_what_the_labels_say_and_never_a_samples_first_token(rows) -> None:
    places, samples = packed(rows)
    batch = collate(places, samples, PAD)
    expected = [(one["sample_id"], label) for one in samples for label in one["labels"][1:] if label != NOT_LEARNED]
    owners = [batch.sample_ids[owner] for owner in batch.owners_N().tolist()]
    assert list(zip(owners, batch.target_ids_N.tolist(), strict=True)) == expected


@settings(deadline=None)
@given(rows_of_tokens)
def test_a_target_is_the_next_token_of_the_same_sample(rows) -> None:
    batch = collate(*packed(rows), PAD)
    ids, segments = batch.input_ids_BT.flatten(), batch.segment_ids_BT.flatten()
    assert torch.equal(batch.target_ids_N, ids[batch.rows_N + 1])
    assert torch.equal(segments[batch.rows_N], segments[batch.rows_N + 1])
    assert (segments[batch.rows_N] > 0).all()
    assert torch.equal(batch.rows_N, batch.rows_N.sort().values)


@settings(deadline=None)
@given(rows_of_tokens)
def test_every_sample_lies_whole_at_its_place_with_positions_from_0(rows) -> None:
    places, samples = packed(rows)
    batch = collate(places, samples, PAD)
    assert batch.input_ids_BT.shape[1] % ROW_MULTIPLE == 0
    assert batch.sample_ids == tuple(one["sample_id"] for one in samples)
    for b, row in enumerate(places):
        for segment, index in enumerate(row, start=1):
            here = batch.segment_ids_BT[b] == segment
            assert batch.input_ids_BT[b, here].tolist() == samples[index]["input_ids"]
            assert batch.position_ids_BT[b, here].tolist() == list(range(int(here.sum())))
    assert (batch.input_ids_BT[batch.segment_ids_BT == 0] == PAD).all()


@pytest.mark.parametrize("batch", [empty_batch(5), collate([], [], 5)])
def test_an_idle_worker_has_a_row_of_padding_and_nothing_to_learn(batch: Batch) -> None:
    assert batch.input_ids_BT.tolist() == [[5] * ROW_MULTIPLE]
    assert (batch.num_targets, batch.sample_ids) == (0, ())
    assert batch.owners_N().numel() == 0
