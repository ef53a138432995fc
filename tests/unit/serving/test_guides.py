"""Constrained output, with the real library, a real tokenizer and the real engine."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest

from serving.engine import GenerationRequest, Sampling
from serving.errors import InvalidRequest
from serving.guides import asked_form
from serving.schemas import CompletionRequest

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["card", "cash"]}, "score": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["label", "score"],
    "additionalProperties": False,
}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


def form(**options):
    return asked_form(CompletionRequest.model_validate({"model": "m", "prompt": "x", **options}))


async def generated(loaded, guide, seed, max_tokens=60) -> tuple[str, str]:
    sampling = Sampling(temperature=1.5, seed=seed)
    request = GenerationRequest((30, 31), max_tokens, sampling, guide=guide)
    deltas = [delta async for delta in loaded.engine.submit(request)]
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": WRAPPED},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
    ],
)
async def test_an_answer_fits_its_schema(loaded, options):
    for seed in range(4):
        text, reason = await generated(loaded, loaded.prompts.guide(form(**options)), seed)
        assert reason == "stop"
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "options", [{"guided_regex": "[a-c]{3}-[0-9]+x"}, {"structured_outputs": {"regex": "(ü|é)+!"}}]
)
async def test_an_answer_matches_its_pattern(loaded, options):
    pattern = options.get("guided_regex") or options["structured_outputs"]["regex"]
    found = [await generated(loaded, loaded.prompts.guide(form(**options)), seed) for seed in range(6)]
    ended = [text for text, reason in found if reason == "stop"]
    assert ended
    assert all(re.fullmatch(pattern, text) for text in ended)


async def test_an_answer_is_one_of_its_choices(loaded):
    choices = ["yes", "no", 'a "quoted" one\n', "你好"]
    guides = [loaded.prompts.guide(form(guided_choice=choices)) for _ in range(12)]
    texts = [await generated(loaded, guide, seed) for seed, guide in enumerate(guides)]
    assert {text for text, _ in texts} <= {*choices}
    assert len({text for text, _ in texts}) > 1


async def test_any_object_is_json_as_far_as_it_goes(loaded):
    """Random weights may go on for ever; what ended by itself is whole."""
    found = [
        await generated(loaded, loaded.prompts.guide(form(response_format={"type": "json_object"})), seed, 90)
        for seed in range(8)
    ]
    assert all(text.startswith("{") for text, _ in found)
    ended = [json.loads(text) for text, reason in found if reason == "stop"]
    assert ended
    assert {type(each) for each in ended} == {dict}


async def test_an_answer_goes_on_behind_given_tokens(loaded):
    whole = form(guided_regex="[a-z]{20}")
    request = GenerationRequest((30,), 60, Sampling(seed=2), guide=loaded.prompts.guide(whole))
    deltas = [delta async for delta in loaded.engine.submit(request)]
    ids = [token for delta in deltas for token in delta.token_ids]
    for cut in (1, len(ids) // 2, len(ids) - 1):
        guide = loaded.prompts.guide(whole)
        rest = GenerationRequest((30,), 60, Sampling(seed=2), given_ids=tuple(ids[:cut]), guide=guide)
        assert [token async for delta in loaded.engine.submit(rest) for token in delta.token_ids] == ids[cut:]


def test_a_guide_is_a_mask_in_packed_bits(loaded):
    guide = loaded.prompts.guide(form(guided_regex="a"))
    allowed = np.nonzero(np.unpackbits(guide.mask().view(np.uint8), bitorder="little"))[0].tolist()
    assert [loaded.prompts.decode([token]) for token in allowed] == ["a"]
    other = guide.copy()
    guide.advance(allowed[0])
    assert (guide.finished, other.finished) == (True, False)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"guided_regex": "(?=x)a"}, "guided_regex"),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"guided_json": {"$ref": "http://127.0.0.1/secret"}}, "guided_json"),
        ({"structured_outputs": {"json": {"type": "wizard"}}}, "structured_outputs.json"),
    ],
)
def test_forms_that_cannot_be_kept_are_refused(loaded, options, param):
    for _ in range(2):
        with pytest.raises(InvalidRequest) as caught:
            loaded.prompts.guide(form(**options))
        assert caught.value.param == param


def test_no_form_is_asked_for(loaded):
    assert form() is form(response_format={"type": "text"}) is form(structured_outputs={}) is None


def test_two_forms_are_refused():
    with pytest.raises(InvalidRequest, match="cannot both say"):
        form(guided_regex="a", response_format={"type": "json_object"})
