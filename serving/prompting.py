"""A request's prompt as the ids that a model reads, outside of an answer: for the judge, which reads along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serving.schemas import ChatCompletionRequest, CompletionRequest

if TYPE_CHECKING:
    from serving.backend import BackendRequest
    from serving.loading import LoadedModel


def prompt_ids(model: LoadedModel, request: BackendRequest) -> tuple[int, ...]:
    """Of the first choice; empty for a request that asks for no text. Such a request was answered before."""
    path = request.path.partition("?")[0]
    if path == "/v1/chat/completions":
        chat = ChatCompletionRequest.model_validate_json(request.body)
        return model.prompts.chat([message.as_template_input() for message in chat.messages])
    if path == "/v1/completions":
        plain = CompletionRequest.model_validate_json(request.body)
        return model.prompts.text(plain.prompts[0])
    return ()
