"""I3's ground: targets never cross samples, packed samples do not see each other, padding is inert."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import NOT_LEARNED, ROW_MULTIPLE, Batch, Piece, Sample, collate, empty_batch, num_targets

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


@settings(deadline=None)
@given(rows_of_tokens, st.data())
def test_a_piece_is_a_sample_of_its_own(rows, data) -> None:
    """What follows a cut starts at position 0, sees nothing of what was before, and its first token is not learned."""
    places, samples = packed(rows)
    cuts = [data.draw(st.integers(0, len(one["input_ids"]))) for one in samples]
    ends = [len(one["input_ids"]) for one in samples]
    halves = [[Piece(at, *half) for at in row for half in ((0, cuts[at]), (cuts[at], ends[at]))] for row in places]
    pieces = [[half for half in row if half.start < half.end] for row in halves]
    alone = [
        Sample(sample_id=one["sample_id"], input_ids=one["input_ids"][start:end], labels=one["labels"][start:end])
        for row in pieces
        for one, start, end in ((samples[at], start, end) for at, start, end in row)
    ]
    counts = iter(range(len(alone)))
    as_samples = collate([[next(counts) for _ in row] for row in pieces], alone, PAD)
    assert_same(collate(pieces, samples, PAD), as_samples)
    assert as_samples.num_targets == sum(map(num_targets, alone))


def test_whole_pieces_are_the_samples() -> None:
    places, samples = packed([[[(1, True), (2, True)], [(3, False), (4, True), (5, True)]], [[(6, True)]]])
    pieces = [[Piece(at, 0, len(samples[at]["input_ids"])) for at in row] for row in places]
    assert_same(collate(pieces, samples, PAD), collate(places, samples, PAD))


def test_a_cut_costs_one_target() -> None:
    whole = sample(0, [11, 12, 13, 14, 15], [False, True, True, True, True])
    cut = collate([(Piece(0, 0, 3),), (Piece(0, 3, 5),)], [whole], PAD)
    assert num_targets(whole) == 4
    assert cut.target_ids_N.tolist() == [12, 13, 15]
    assert cut.position_ids_BT[:, :3].tolist() == [[0, 1, 2], [0, 1, 0]]
    assert cut.sample_ids == (100, 100)


def assert_same(one: Batch, other: Batch) -> None:
    for name, value in vars(one).items():
        same = vars(other)[name]
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value == same, name


@pytest.mark.parametrize("batch", [empty_batch(5), collate([], [], 5)])
def test_an_idle_worker_has_a_row_of_padding_and_nothing_to_learn(batch: Batch) -> None:
    assert batch.input_ids_BT.tolist() == [[5] * ROW_MULTIPLE]
    assert (batch.num_targets, batch.sample_ids) == (0, ())
    assert batch.owners_N().numel() == 0


@settings(deadline=None)
@given(rows_of_tokens, st.data())
def test_the_parts_of_all_teachers_together_are_the_whole(rows, data) -> None:
    places, samples = packed(rows)
    for one in samples:
        one["teacher"] = data.draw(st.integers(0, 3))
    batch = collate(places, samples, PAD)
    groups = [(0, 2), (1,), (3,)]
    parts = [batch.taught_by(group) for group in groups]
    covered = torch.cat([rows_M for _, rows_M in parts])
    assert torch.equal(covered.sort().values, torch.arange(batch.num_targets))
    for group, (part, rows_M) in zip(groups, parts, strict=True):
        assert torch.equal(rows_M, rows_M.sort().values)
        assert torch.equal(part.target_ids_N, batch.target_ids_N[rows_M])
        assert part.sample_ids == tuple(one["sample_id"] for one in samples if one["teacher"] in group)
        assert set(part.teachers) <= set(group)
        assert positions(part) == [positions(batch)[at] for at in rows_M.tolist()]


def positions(batch: Batch) -> list[tuple[int, int, list[int]]]:
    """Of each learned position: whose it is, where in it, and all tokens up to it that it may see."""
    found = []
    ids, places, segments = batch.input_ids_BT, batch.position_ids_BT, batch.segment_ids_BT
    for row, owner in zip(batch.rows_N.tolist(), batch.owners_N().tolist(), strict=True):
        b, t = divmod(row, ids.shape[1])
        seen = ids[b, : t + 1][segments[b, : t + 1] == segments[b, t]].tolist()
        found.append((batch.sample_ids[owner], int(places[b, t]), seen))
    return found


@settings(deadline=None)
@given(rows_of_tokens)
def test_who_teaches_all_is_given_all_and_who_teaches_none_an_idle_row(rows) -> None:
    batch = collate(*packed(rows), PAD)
    whole, every = batch.taught_by([0])
    for name in ("input_ids_BT", "position_ids_BT", "segment_ids_BT", "rows_N", "target_ids_N"):
        assert torch.equal(getattr(whole, name), getattr(batch, name)), name
    assert every.tolist() == list(range(batch.num_targets))
    nothing, none = batch.taught_by([1])
    assert (nothing.num_targets, nothing.sample_ids, none.numel()) == (0, (), 0)
    assert empty_batch(PAD).taught_by([0])[0].sample_ids == ()


def test_a_part_is_as_short_as_its_samples_allow() -> None:
    long, short = sample(0, [7] * 30, [True] * 30), sample(1, [8] * 5, [True] * 5)
    long["teacher"], short["teacher"] = 0, 1
    part, _ = collate([[0], [1]], [long, short], PAD).taught_by([1])
    assert part.input_ids_BT.shape == (1, ROW_MULTIPLE)
