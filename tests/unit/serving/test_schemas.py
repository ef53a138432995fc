"""Options that nobody knows are ignored, and named where somebody may look."""

from __future__ import annotations

import logging

import pytest

from serving.schemas import ChatCompletionRequest, EmbeddingRequest

CHAT = {"model": "support-bot", "messages": [{"role": "user", "content": "?"}]}


def test_unknown_options_are_named_in_the_log(caplog):
    caplog.set_level(logging.INFO, "serving")
    ChatCompletionRequest.model_validate({**CHAT, "max_tokns": 3, "line\nbreak": 1, "user": "me", "tools": []})
    [record] = caplog.records
    assert record.getMessage() == "unknown options are ignored: 'max_tokns', 'line\\nbreak'"


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, EmbeddingRequest])
def test_options_that_are_known_are_not(caplog, request_type):
    caplog.set_level(logging.INFO, "serving")
    known = {"input": "x", **CHAT} if request_type is ChatCompletionRequest else {"model": "m", "input": "x"}
    request_type.model_validate({name: value for name, value in known.items() if name in request_type.model_fields})
    assert not caplog.records


def test_a_log_line_has_an_end(caplog):
    caplog.set_level(logging.INFO, "serving")
    ChatCompletionRequest.model_validate({**CHAT, **{f"{number}-{'x' * 999}": 0 for number in range(999)}})
    [record] = caplog.records
    assert len(record.getMessage()) < 2000
