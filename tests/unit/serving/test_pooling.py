"""Texts that are read at once: every answer is that of the text alone, whatever it was batched with."""

from __future__ import annotations

import asyncio
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from serving.errors import EngineFailed, InvalidRequest, Overloaded
from serving.pooling import PoolingOptions, TransformersPoolingEngine, by_length, pooled

SHAPE = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [5, 6, 7], [20, 21]]
LABELS = ("sad", "glad", "neither")


def close_to(found, expected):
    torch.testing.assert_close(torch.tensor(found), torch.as_tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(2)
    return BertModel(BertConfig(**SHAPE, max_position_embeddings=32)).eval()


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(2)
    return BertForSequenceClassification(BertConfig(**SHAPE, max_position_embeddings=32, num_labels=3)).eval()


@pytest.fixture
def start():
    engines = []

    def start(model, **options) -> TransformersPoolingEngine:
        options = {"pad_id": 0, "max_batch_tokens": 12, **options}
        engines.append(TransformersPoolingEngine(model, PoolingOptions(**options), context_length=32))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


async def test_probabilities_are_those_of_each_text_alone(start, classifier):
    found = await start(classifier, labels=LABELS).classify(TEXTS)
    close_to(found, [classifier(torch.tensor([text])).logits[0].softmax(-1).tolist() for text in TEXTS])
    close_to([sum(each) for each in found], [1.0] * len(TEXTS))
    assert found[0] == found[3]


async def test_labels_that_exclude_none_stand_alone(start, classifier):
    found = await start(classifier, labels=LABELS, exclusive=False).classify(TEXTS)
    close_to(found, [classifier(torch.tensor([text])).logits[0].sigmoid().tolist() for text in TEXTS])


async def test_a_causal_model_without_padding_classifies_too(start):
    torch.manual_seed(2)
    model = LlamaForSequenceClassification(LlamaConfig(**SHAPE, num_labels=3, pad_token_id=None)).eval()
    found = await start(model, labels=LABELS, pad_id=None).classify(TEXTS)
    close_to(found, [model(torch.tensor([text])).logits[0].softmax(-1).tolist() for text in TEXTS])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
async def test_vectors_are_those_of_each_text_alone(start, encoder, pooling):
    def alone(text):
        hidden_TD = encoder(torch.tensor([text])).last_hidden_state[0]
        chosen = {"mean": hidden_TD.mean(0), "cls": hidden_TD[0], "last": hidden_TD[-1], "max": hidden_TD.amax(0)}
        return chosen[pooling]

    found = await start(encoder, pooling=pooling).embed(TEXTS)
    close_to(found, torch.stack([alone(text) for text in TEXTS]))
    normal = await start(encoder, pooling=pooling, normalized=True).embed(TEXTS)
    close_to(normal, torch.stack([torch.nn.functional.normalize(alone(text), dim=0) for text in TEXTS]))


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 40), st.booleans())
def test_groups_hold_everyone_once_within_the_budget(lengths, budget, padded):
    texts = [SimpleNamespace(ids=(1,) * length) for length in lengths]
    groups = list(by_length(texts, budget, padded=padded))
    assert sorted(len(text.ids) for group in groups for text in group) == sorted(lengths)
    for group in groups:
        sizes = [len(text.ids) for text in group]
        assert len(group) == 1 or len(group) * max(sizes) <= budget
        assert padded or len(group) == 1


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=5), min_size=1, max_size=4))
def test_padding_counts_for_nothing(rows):
    width = max(map(len, rows))
    hidden = torch.tensor([[*row, *[1000] * (width - len(row))] for row in rows]).float()[..., None]
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    assert pooled(hidden, mask, "max")[:, 0].tolist() == [max(row) for row in rows]
    assert pooled(hidden, mask, "last")[:, 0].tolist() == [row[-1] for row in rows]
    close_to(pooled(hidden, mask, "mean")[:, 0].tolist(), [sum(row) / len(row) for row in rows])


@pytest.mark.parametrize("text", [[], [60], [-1], [1] * 33])
async def test_texts_that_cannot_be_read_are_refused(start, encoder, text):
    with pytest.raises(InvalidRequest):
        await start(encoder).embed([TEXTS[0], text])


async def test_the_other_task_is_refused(start, encoder, classifier):
    with pytest.raises(InvalidRequest, match="does not classify"):
        await start(encoder).classify(TEXTS)
    with pytest.raises(InvalidRequest, match="does not embed"):
        await start(classifier, labels=LABELS).embed(TEXTS)


async def test_a_model_that_breaks_fails_its_texts_and_serves_the_next(start, encoder, monkeypatch, caplog):
    engine = start(encoder)
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(EngineFailed):
            await engine.embed(TEXTS)
    assert "no memory" in caplog.text
    assert len(await engine.embed(TEXTS)) == len(TEXTS)


async def test_a_text_of_no_numbers_fails_alone(start, encoder, monkeypatch):
    embed = encoder.get_input_embeddings()
    poison = torch.where(torch.arange(60) == 59, torch.nan, 0.0)[:, None]
    monkeypatch.setattr(embed, "forward", lambda ids: torch.nn.functional.embedding(ids, embed.weight + poison))
    engine = start(encoder, max_batch_tokens=64)
    expected = encoder(torch.tensor([[5, 6, 7]])).last_hidden_state[0].mean(0)
    found = await together(engine, [[5, 6, 7], [5, 59, 7], [7, 6, 5]], monkeypatch)
    assert [isinstance(each, EngineFailed) for each in found] == [False, True, False]
    close_to(found[0][0], expected)


async def test_a_text_that_breaks_the_model_fails_alone(start, encoder, monkeypatch, caplog):
    forward = encoder.forward

    def breaking(input_ids, **kwargs):
        if 59 in input_ids:
            raise RuntimeError("no memory")
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(encoder, "forward", breaking)
    engine = start(encoder, max_batch_tokens=64)
    found = await together(engine, [[5, 6, 7], [5, 59, 7], [7, 6, 5]], monkeypatch)
    assert [isinstance(each, EngineFailed) for each in found] == [False, True, False]
    assert "broke on 3 texts" in caplog.text
    assert engine.is_healthy


async def together(engine, texts, monkeypatch):
    """Each text asked for by itself, and all of them computed as one group."""
    gate, take = Event(), engine._take
    monkeypatch.setattr(engine, "_take", lambda: gate.wait(30) and take())
    await engine.embed([[1]])  # the thread stands at the gate behind it
    asked = [asyncio.create_task(engine.embed([text])) for text in texts]
    while engine.load.waiting < len(texts):
        await asyncio.sleep(0)
    gate.set()
    return await asyncio.gather(*asked, return_exceptions=True)


async def test_a_model_that_breaks_every_time_is_not_healthy(start, encoder, monkeypatch):
    engine = start(encoder)
    assert engine.is_healthy
    monkeypatch.setattr(encoder, "forward", lambda **_: (_ for _ in ()).throw(RuntimeError("no memory")))
    for _ in range(8):
        with pytest.raises(EngineFailed):
            await engine.embed(TEXTS[:1])
    assert not engine.is_healthy


async def test_too_many_are_refused_and_a_close_fails_who_waits(start, encoder, monkeypatch):
    gate, entered, forward = Event(), Event(), encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda **kwargs: entered.set() or (gate.wait(30) and forward(**kwargs)))
    engine = start(encoder, max_waiting=2)
    running = asyncio.create_task(engine.embed(TEXTS[:1]))
    assert await asyncio.to_thread(entered.wait, 30)
    waiting = asyncio.create_task(engine.embed(TEXTS[:2]))
    while engine.load.waiting < 2:
        await asyncio.sleep(0)
    assert engine.load.running == 1
    with pytest.raises(Overloaded):
        await engine.embed(TEXTS[:1])
    closing = asyncio.create_task(asyncio.to_thread(engine.close))
    with pytest.raises(EngineFailed):
        await waiting
    gate.set()
    assert len(await running) == 1
    await closing
    with pytest.raises(EngineFailed):
        await engine.embed(TEXTS[:1])
