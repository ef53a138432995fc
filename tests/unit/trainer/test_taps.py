"""Inner values are those that transformers itself gives, for packed rows those of each sample alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA
from trainer.batch import NOT_LEARNED, Batch, Sample, collate
from trainer.errors import UserError
from trainer.models import fresh_model
from trainer.taps import layers_of, reads_attention, shape_of, tap_attention, tapped
from trainer.tokenizer import train_tokenizer
from trainer.wanted import LAST_HIDDEN, Shape

LENGTHS = (5, 11, 3, 8)
UNPACKED, PACKED = [[0], [1], [2], [3]], [[0, 1], [2, 3]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def samples() -> list[Sample]:
    g = torch.Generator().manual_seed(5)
    rows = [torch.randint(5, 260, (length,), generator=g).tolist() for length in LENGTHS]
    return [
        Sample(sample_id=at, input_ids=row, labels=[NOT_LEARNED] * (at % 2 + 1) + row[at % 2 + 1 :])
        for at, row in enumerate(rows)
    ]


MISTRAL = {**TINY_LLAMA, "model_type": "mistral", "sliding_window": 4}
GEMMA2 = {**TINY_LLAMA, "model_type": "gemma2", "head_dim": 8}


@pytest.fixture(scope="module", params=[TINY_LLAMA, TINY_GPT2, MISTRAL], ids=["llama", "gpt2", "mistral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    tokenizer = train_tokenizer(["where is my card"], 300)
    return fresh_model({**request.param, "initializer_range": 0.3}, tokenizer, 1).eval()


@torch.no_grad()
def own(model: PreTrainedModel, batch: Batch) -> list[Any]:
    """Each sample by itself, as transformers shows it with its plain attention."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found = [
        model(torch.tensor([one["input_ids"]]), output_hidden_states=True, output_attentions=True) for one in samples()
    ]
    model.set_attn_implementation(before)
    return [found[index] for index in batch.sample_ids]


def learned(batch: Batch) -> list[tuple[int, int, int]]:
    """(place in `sample_ids`, position in the sample, position in the row) of every learned position."""
    length = batch.input_ids_BT.shape[1]
    places = batch.position_ids_BT.flatten()[batch.rows_N].tolist()
    return list(zip(batch.owners_N().tolist(), places, (batch.rows_N % length).tolist(), strict=True))


def look(model: PreTrainedModel, batch: Batch, *names: str) -> dict[str, Tensor]:
    if reads_attention(names):
        tap_attention(model)
    with torch.no_grad():
        return tapped(model, batch, names)[1]


@pytest.mark.parametrize("rows", [UNPACKED, PACKED], ids=["alone", "packed"])
def test_hidden_states_are_those_of_transformers(model: PreTrainedModel, rows: list[list[int]]) -> None:
    batch = collate(rows, samples(), 0)
    layers = model.config.num_hidden_layers
    found = look(model, batch, *(f"hidden:{layer}" for layer in range(layers)), LAST_HIDDEN)
    theirs = own(model, batch)
    for layer in range(layers + 1):
        expected = torch.stack([theirs[owner].hidden_states[layer][0, at] for owner, at, _ in learned(batch)])
        name = LAST_HIDDEN if layer == layers else f"hidden:{layer}"
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [UNPACKED, PACKED], ids=["alone", "packed"])
def test_scores_become_the_attention_of_transformers(model: PreTrainedModel, rows: list[list[int]]) -> None:
    batch = collate(rows, samples(), 0)
    layers, theirs = model.config.num_hidden_layers, own(model, batch)
    found = look(model, batch, *(f"scores:{layer}" for layer in range(1, layers + 1)))
    for layer in range(1, layers + 1):
        scores = found[f"scores:{layer}"]
        assert scores.shape == (batch.num_targets, model.config.num_attention_heads, batch.input_ids_BT.shape[1])
        for ours, (owner, at, place) in zip(scores.softmax(dim=2), learned(batch), strict=True):
            expected = torch.zeros_like(ours)
            expected[:, place - at : place + 1] = theirs[owner].attentions[layer - 1][0, :, at, : at + 1]
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [UNPACKED, PACKED], ids=["alone", "packed"])
def test_values_are_scaled_products_of_the_value_vectors(model: PreTrainedModel, rows: list[list[int]]) -> None:
    batch = collate(rows, samples(), 0)
    found = look(model, batch, "values:1")["values:1"]
    vectors = [value_vectors(model, one["input_ids"]) for one in samples()]
    for ours, (owner, at, place) in zip(found, learned(batch), strict=True):
        value_HTS = vectors[batch.sample_ids[owner]]
        expected = torch.full_like(ours, -torch.inf)
        products = (value_HTS[:, at : at + 1] @ value_HTS[:, : at + 1].transpose(1, 2))[:, 0]
        expected[:, place - at : place + 1] = products / math.sqrt(value_HTS.shape[2])
        if window := getattr(model.config, "sliding_window", None):
            expected[:, : max(0, place + 1 - window)] = -torch.inf
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def value_vectors(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """[H, T, S] of the first layer, from its own weights."""
    layer = layers_of(model)[0]
    hidden_TD = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[0][0]
    if model.config.model_type == "gpt2":
        value_TD = layer.attn.c_attn(layer.ln_1(hidden_TD)).chunk(3, dim=1)[2]
        return value_TD.unflatten(1, (model.config.num_attention_heads, -1)).transpose(0, 1)
    value_TD = layer.self_attn.v_proj(layer.input_layernorm(hidden_TD))
    return value_TD.unflatten(1, (model.config.num_key_value_heads, -1)).transpose(0, 1)


def test_looking_changes_nothing(model: PreTrainedModel) -> None:
    batch = collate(PACKED, samples(), 0)
    with torch.no_grad():
        before, nothing = tapped(model, batch, ())
        tap_attention(model)
        after, found = tapped(model, batch, ("hidden:1", "scores:1", "values:2", LAST_HIDDEN))
        again, _ = tapped(model, batch, ())
    assert nothing == {}
    assert torch.equal(after, before)
    assert torch.equal(again, before)
    assert torch.equal(found[LAST_HIDDEN], before)
    assert not any(layer._forward_pre_hooks for layer in layers_of(model))


def test_gradients_flow_through_every_inner_value(model: PreTrainedModel) -> None:
    batch = collate(PACKED, samples(), 0)
    tap_attention(model)
    _, found = tapped(model, batch, ("hidden:1", "scores:1", "values:1"))
    first = next(model.get_input_embeddings().parameters())
    for value in found.values():
        (gradient,) = torch.autograd.grad(
            value.masked_fill(value == -torch.inf, 0.0).square().sum(), first, retain_graph=True
        )
        assert gradient.isfinite().all()
        assert gradient.any()


def test_an_idle_batch_shows_nothing(model: PreTrainedModel) -> None:
    found = look(model, collate([], [], 0), "hidden:1", "scores:1", "values:1", LAST_HIDDEN)
    assert {name: len(value) for name, value in found.items()} == dict.fromkeys(found, 0)
    assert len(found) == 4


def test_layers_that_are_not_there_are_named(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match=r"gives no hidden:7, scores:9") as error:
        look(model, collate(UNPACKED, samples(), 0), "hidden:7", "hidden:1", "scores:9")
    assert error.value.reason == "LAYER_UNKNOWN"
    assert shape_of(model) == Shape(model.config.hidden_size, 2)


def test_attention_that_does_more_than_the_kernel_is_refused_with_a_mend() -> None:
    """Gemma 2 caps its scores; what would be read is not what it computes."""
    model = fresh_model(GEMMA2, train_tokenizer(["where is my card"], 300), 1)
    with pytest.raises(UserError, match=r"Gemma2ForCausalLM does more .* leave attention and value_relation") as error:
        tap_attention(model)
    assert error.value.reason == "MODEL_UNSUPPORTED"
    assert model.config._attn_implementation == "eager"
