"""What is unpacked is what was packed, bit for bit, and holds nothing of the parcel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.driver.parcel import pack, pack_tokens, unpack, unpack_tokens
from trainer.answers import TopkAnswer
from trainer.batch import Batch, Sample, collate, empty_batch
from trainer.head import Head
from trainer.teacher import Targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_targets_keep_every_bit(dtype: torch.dtype) -> None:
    hidden = torch.randn(5, 3).to(dtype)
    hidden[0, 0] = float("-inf")
    answer = unpack(Targets, pack(Targets(hidden)))
    assert answer.hidden_ND is not None
    assert answer.hidden_ND.dtype == dtype
    assert torch.equal(answer.hidden_ND, hidden)


def test_nothing_stays_nothing() -> None:
    assert unpack(Targets, pack(Targets(None))) == Targets(None)
    head = unpack(Head, pack(Head(torch.ones(2, 3, dtype=torch.bfloat16), None)))
    assert head.bias_V is None
    assert head.weight_VD.shape == (2, 3)


def test_a_batch_is_the_same_at_the_other_end() -> None:
    samples = [
        Sample(sample_id=7, input_ids=[1, 2, 3], labels=[-100, 2, 3]),
        Sample(sample_id=9, input_ids=[4], labels=[4]),
    ]
    for batch in (collate([[0, 1]], samples, pad_id=0), empty_batch(0)):
        other = unpack(Batch, pack(batch))
        assert other.sample_ids == batch.sample_ids
        for name in ("input_ids_BT", "position_ids_BT", "segment_ids_BT", "rows_N", "target_ids_N"):
            assert torch.equal(getattr(other, name), getattr(batch, name)), name


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2], [], [70_000]]])
def test_token_lists(sequences: list[list[int]]) -> None:
    assert unpack_tokens(pack_tokens(sequences)) == sequences


def test_read_only_arrays_of_the_object_store_become_tensors_of_their_own() -> None:
    parcel = pack(Targets(torch.zeros(2, 2)))
    parcel["hidden_ND"][1].flags.writeable = False
    answer = unpack(Targets, parcel)
    assert answer.hidden_ND is not None
    answer.hidden_ND.add_(1)
    assert np.all(parcel["hidden_ND"][1] == 0)


def test_every_part_of_an_answer_keeps_its_bits() -> None:
    """Inner values by name, masked scores among them, and a top-k answer inside."""
    top = TopkAnswer(torch.tensor([[3, 1]], dtype=torch.int32), torch.tensor([[-0.1, -3.0]]), torch.tensor([-8.5]))
    inner = {"scores:2": torch.tensor([[[0.5, -torch.inf]]]).bfloat16(), "hidden:last": torch.zeros(0, 4)}
    answer = unpack(Targets, pack(Targets(topk=top, logits_NV=torch.randn(2, 3), inner=inner)))
    assert answer.topk is not None
    for name in ("ids_MK", "log_probs_MK", "rest_M"):
        found, sent = getattr(answer.topk, name), getattr(top, name)
        assert (found.dtype, found.tolist()) == (sent.dtype, sent.tolist())
    assert answer.inner.keys() == inner.keys()
    for name, sent in inner.items():
        assert answer.inner[name].dtype == sent.dtype
        assert torch.equal(answer.inner[name], sent)


def test_heads_keep_their_transforms_and_batches_their_teachers() -> None:
    head = unpack(Head, pack(Head(torch.ones(2, 3), torch.ones(2), scale=0.25, softcap=30.0)))
    assert (head.scale, head.softcap, head.bias_V.tolist()) == (0.25, 30.0, [1.0, 1.0])
    samples = [Sample(sample_id=at, input_ids=[1, 2], labels=[1, 2], teacher=at) for at in range(3)]
    batch = unpack(Batch, pack(collate([[0, 2], [1]], samples, pad_id=0)))
    assert batch.teachers == (0, 2, 1)
    assert batch.taught_by([2])[0].sample_ids == (2,)
