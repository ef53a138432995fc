"""What a judge asks of a model: answers to examples, greedily and whole, and labels with their probabilities."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fake_backends import pooling_model

from serving.backend import BackendRequest
from serving.engine import GenerationRequest, Sampling
from serving.errors import DeadlineExceeded, InvalidRequest, ServingError
from serving.reading import Reading
from serving.task_data import Example

QUESTION = ({"role": "user", "content": "Where is my card?"},)


async def greedy(loaded, prompt: tuple[int, ...], most: int) -> str:
    request = GenerationRequest(prompt, most, Sampling(temperature=0))
    return "".join([delta.text async for delta in loaded.engine.submit(request)])


async def test_an_example_is_answered_as_a_chat_and_greedily(loaded):
    prompt = loaded.prompts.chat(QUESTION)
    room = 2 * len(loaded.prompts.text("In the post.")) + 16
    reading = Reading(loaded)
    answer = await reading.answer(Example(QUESTION, "In the post."))
    assert answer == await greedy(loaded, prompt, room) == await reading.answer(Example(QUESTION, "In the post."))


async def test_an_answer_to_an_example_has_a_time(loaded, monkeypatch):
    monkeypatch.setattr("serving.reading.MAX_TIMEOUT_S", 0.0)
    with pytest.raises(DeadlineExceeded):
        await Reading(loaded).answer(Example(QUESTION, "In the post."))


async def test_a_model_without_chats_is_asked_the_last_words(loaded, monkeypatch):
    monkeypatch.setattr("serving.prompts.Prompts.knows_chats", False)
    turns = ({"role": "system", "content": "Be brief."}, *QUESTION)
    room = 2 * len(loaded.prompts.text("x")) + 16
    expected = await greedy(loaded, loaded.prompts.text("Where is my card?"), room)
    assert await Reading(loaded).answer(Example(turns, "x")) == expected


async def test_an_example_that_does_not_fit_is_refused(loaded):
    with pytest.raises(InvalidRequest, match="no room for an answer"):
        await Reading(loaded).answer(Example(({"role": "user", "content": "card " * 200},), "x"))


async def test_labels_and_the_likeliest_of_them(loaded):
    reading = Reading(pooling_model(loaded.prompts))
    assert reading.classifies
    body = json.dumps({"model": "m", "input": ["Where is it?", "Top up"]}).encode()
    found = await reading.labels(BackendRequest("POST", "/v1/classify", (), body, "r"))
    assert found.exclusive
    assert [each.keys() for each in found.texts] == [{"arrival", "top_up", "other"}] * 2
    example = Example(({"role": "user", "content": "Where is it?"},), "arrival")
    best = max(found.texts[0], key=found.texts[0].__getitem__)
    assert await reading.answer(example) == best


async def test_what_a_model_cannot_do_is_said(loaded):
    request = BackendRequest("POST", "/v1/classify", (), b'{"model": "m", "input": "x"}', "r")
    with pytest.raises(ServingError, match="gives no labels"):
        await Reading(loaded).labels(request)
    with pytest.raises(ServingError, match="continues no text"):
        await Reading(replace(loaded, engine=None)).score((1, 2))
