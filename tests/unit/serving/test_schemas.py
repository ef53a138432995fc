"""Options that nobody knows are ignored, and told to whoever may name them."""

from __future__ import annotations

import pytest

from serving.schemas import ChatCompletionRequest, EmbeddingRequest

CHAT = {"model": "support-bot", "messages": [{"role": "user", "content": "?"}]}


def test_unknown_options_are_told():
    body = ChatCompletionRequest.model_validate({**CHAT, "max_tokns": 3, "line\nbreak": 1, "user": "me", "tools": []})
    assert body.ignored == ("max_tokns", "line\nbreak")


@pytest.mark.parametrize("request_type", [ChatCompletionRequest, EmbeddingRequest])
def test_options_that_are_known_are_not(request_type):
    known = {"input": "x", **CHAT} if request_type is ChatCompletionRequest else {"model": "m", "input": "x"}
    body = request_type.model_validate(
        {name: each for name, each in known.items() if name in request_type.model_fields}
    )
    assert body.ignored == ()


def test_what_is_told_has_an_end():
    body = ChatCompletionRequest.model_validate({**CHAT, **{f"{number}-{'x' * 999}": 0 for number in range(999)}})
    assert len("".join(body.ignored)) < 2000
