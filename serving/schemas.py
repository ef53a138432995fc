"""The requests of the OpenAI API, as far as this endpoint answers them, with every bound on its field.

An option that changes what the answer means and is not supported is an error that says so; any other unknown option is
ignored, as OpenAI does. Answers are built in `answers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.errors import InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256  # characters
_NOT_YET = "is not supported as of now; leave it out"

# An option, and the values of it that change nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
    "audio": (None,),
}


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(_Request):
    include_usage: bool = False


class GenerationOptions(_Request):
    """What both kinds of completion share."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, data: Any) -> Any:
        if isinstance(data, dict):
            refuse_unsupported(data)
        return data

    @model_validator(mode="after")
    def _stop_is_bounded(self) -> GenerationOptions:
        if len(self.stop_strings) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"at most {MAX_STOP_STRINGS} stop strings", param="stop")
        if any(len(stop) > MAX_STOP_LENGTH for stop in self.stop_strings):
            raise InvalidRequest(f"a stop string has at most {MAX_STOP_LENGTH} characters", param="stop")
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Empty ones stop nothing."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in stops if stop)

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(_Request):
    type: Literal["text"]
    text: str


class ChatMessage(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def as_template_input(self) -> dict[str, str]:
        """What chat templates read; `developer` is OpenAI's newer word for `system`."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatCompletionRequest(GenerationOptions):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def token_limit(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class CompletionRequest(GenerationOptions):
    default_max_tokens: ClassVar[int] = 16

    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]

    @property
    def token_limit(self) -> int:
        return self.max_tokens if self.max_tokens is not None else self.default_max_tokens

    @property
    def single_prompt(self) -> str | Sequence[int]:
        """The prompt, as text or token ids; several at once are refused."""
        if isinstance(self.prompt, str):
            return self.prompt
        if isinstance(self.prompt[0], int):
            return [token for token in self.prompt if isinstance(token, int)]
        if len(self.prompt) > 1:
            raise InvalidRequest(f"more than one prompt per request {_NOT_YET}", param="prompt", code="unsupported")
        return self.prompt[0]


def refuse_unsupported(options: dict[str, Any]) -> None:
    """Raise InvalidRequest for the first option that would change the answer and is not there yet."""
    for name, inert in _UNSUPPORTED.items():
        if options.get(name) not in inert:
            raise InvalidRequest(f"`{name}` {_NOT_YET}", param=name, code="unsupported")
