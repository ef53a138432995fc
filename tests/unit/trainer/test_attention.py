"""The backward of short rows is that of plain attention, and what it does not cover stays the fused kernel's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.tiny_jobs import TINY_LLAMA
from trainer import attention as ours
from trainer.attention import attention, choose_attention
from trainer.batch import Sample, collate
from trainer.models import fresh_model, hidden_at_rows
from trainer.tokenizer import train_tokenizer

ROWS, HEADS, LENGTH, SIZE = 3, 4, 24, 8


def drawn(groups: int, dtype: torch.dtype = torch.bfloat16) -> tuple[list[Tensor], Tensor]:
    """Query, key and value as a projection leaves them (positions before heads), and a gradient of the answer."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(ROWS, LENGTH, heads, SIZE) for heads in (HEADS, groups, groups)]
    asked = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]
    return asked, torch.randn(ROWS, LENGTH, HEADS, SIZE, generator=generator).to(dtype)


def plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scale: float) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(repeats, dim=1) for one in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=3) @ value).transpose(1, 2)


def gradients(answer: Tensor, sides: list[Tensor], gradient: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(answer, sides, gradient.to(answer.dtype)))


def packed_mask() -> Tensor:
    """[B, 1, T, T]: two samples in each row, cut at another place in every row."""
    segments = torch.stack([(torch.arange(LENGTH) >= cut).int() for cut in (5, 12, 24)])
    same = segments[:, :, None] == segments[:, None, :]
    return (same & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())[:, None]


@pytest.mark.parametrize("pairs_at_once", [1, 5, 100])
@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_values_and_gradients_are_those_of_plain_attention_in_float64(
    monkeypatch: pytest.MonkeyPatch, pairs_at_once: int, groups: int, masked: bool, scale: float | None
) -> None:
    monkeypatch.setattr(ours, "_ELEMENTS", pairs_at_once * LENGTH**2)
    sides, gradient = drawn(groups)
    mask = packed_mask() if masked else None
    near = [side.clone().requires_grad_() for side in sides]
    answer, _ = attention(nn.Module(), *near, mask, scaling=scale)
    assert "_ShortRows" in names_behind(answer)
    exact = [side.double().requires_grad_() for side in sides]
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() if mask is None else mask
    expected = plain(*exact, seen, SIZE**-0.5 if scale is None else scale)
    torch.testing.assert_close(answer.double(), expected, rtol=0.02, atol=0.02)
    pairs = zip(gradients(answer, near, gradient), gradients(expected, exact, gradient), strict=True)
    for found, known in pairs:
        assert (found.double() - known).norm() <= 0.01 * known.norm()


def test_a_position_that_may_look_nowhere_gives_no_nan() -> None:
    sides, gradient = drawn(HEADS)
    near = [side.requires_grad_() for side in sides]
    mask = packed_mask()
    mask[1, 0, 7] = False
    answer, _ = attention(nn.Module(), *near, mask)
    gradient[1, 7] = 0.0
    assert all(found.isfinite().all() for found in gradients(answer, near, gradient))


@pytest.mark.parametrize("why", ["float32", "no gradient", "long", "dropout", "soft cap", "not causal", "module"])
def test_what_is_not_covered_is_left_to_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    asked: list[str] = []

    def fused(*_: object, **__: object) -> tuple[None, None]:
        asked.append(why)
        return None, None

    monkeypatch.setitem(ours.ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", fused)
    sides = [side.requires_grad_() for side in drawn(HEADS, torch.float32 if why == "float32" else torch.bfloat16)[0]]
    if why == "long":
        monkeypatch.setattr(ours, "_LONGEST_ROW", LENGTH - 1)
    more = {"dropout": {"dropout": 0.1}, "soft cap": {"softcap": 30.0}, "not causal": {"is_causal": False}}
    module = nn.Module()
    module.is_causal = why != "module"
    with torch.set_grad_enabled(why != "no gradient"):
        attention(module, *sides, None, **more.get(why, {}))
    assert asked == [why]


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_learns_the_same_by_it(packed: bool) -> None:
    tokenizer = train_tokenizer(["where is my card", "top up"], 300)
    model = fresh_model(TINY_LLAMA, tokenizer, 0).bfloat16().train()
    texts = [tokenizer(text)["input_ids"] for text in ("where is my card", "top up", "the card has not arrived yet")]
    samples = [Sample(sample_id=at, input_ids=ids, labels=ids) for at, ids in enumerate(texts)]
    batch = collate([[0, 1], [2]] if packed else [[0], [1], [2]], samples, 0)

    def learned() -> dict[str, Tensor]:
        model.zero_grad()
        hidden_at_rows(model, batch).float().square().sum().backward()
        return {name: one.grad.double() for name, one in model.named_parameters() if one.grad is not None}

    fused = learned()
    choose_attention(model, 64, torch.bfloat16)
    assert model.config._attn_implementation == ours._NAME
    for name, gradient in learned().items():
        assert (gradient - fused[name]).norm() <= 0.02 * fused[name].norm(), name


def names_behind(tensor: Tensor) -> str:
    """The functions of its history."""
    names, waiting = [], [tensor.grad_fn]
    while waiting:
        one = waiting.pop()
        if one is not None:
            names.append(one.name())
            waiting += [parent for parent, _ in one.next_functions]
    return " ".join(names)
