"""The requests of the OpenAI API, as far as this endpoint answers them, with every bound on its field.

An option that changes what the answer means and is not supported is an error that says so; any other unknown option is
ignored, as vLLM does, and known as that. Names beyond OpenAI's are vLLM's. Answers are built in `answers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from serving.engine import Sampling
from serving.errors import InvalidRequest

MAX_STOP_STRINGS = 4
MAX_STOP_LENGTH = 256  # characters
MAX_CHOICES = 64
"""Answers to one request: prompts times `n`."""
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_INPUTS = 512
"""Texts of one request for embeddings or labels."""
MAX_TIMEOUT_S = 600.0
"""So long may one request take."""
_HARMLESS = frozenset({"user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key"})
"""Of OpenAI, and nothing to the answer."""
_MOST_NAMED, _LONGEST_NAME = 16, 64
_NOT_YET = "is not supported as of now; leave it out"

# An option, and the values of it that change nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1),
    "prompt_logprobs": (None, 0),
    "return_tokens_as_token_ids": (None, False),
    "min_tokens": (None, 0),
    "ignore_eos": (None, False),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "guided_grammar": (None,),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "suffix": (None, ""),
    "prediction": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
}


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Supported(_Request):
    """Refuses what it cannot do."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    """The deployment, or the version of a model that lives (`name@3`)."""

    _ignored: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _supported(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        refuse_unsupported(data)
        found = handler(data)
        found._ignored = cls._unknown(data)
        return found

    @property
    def ignored(self) -> tuple[str, ...]:
        """Options of the request that nobody knows, the first of them."""
        return self._ignored

    @classmethod
    def _unknown(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        known = _HARMLESS | cls.model_fields.keys() | _UNSUPPORTED.keys()
        return tuple(name[:_LONGEST_NAME] for name in data if name not in known)[:_MOST_NAMED]


class StreamOptions(_Request):
    include_usage: bool = False


class JsonSchemaFormat(_Request):
    """What OpenAI's clients send: the schema under `schema`, beside its name."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(_Request):
    """`json_object`: any JSON object; `json_schema`: one that fits the schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise InvalidRequest("type `json_schema` needs the field `json_schema`", param="response_format")
        return self


Alternatives = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1024)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=16_384)]


class StructuredOutputs(_Request):
    """vLLM's way to say how an answer must look; exactly one of them."""

    json_: Annotated[dict[str, Any] | str | None, Field(alias="json")] = None
    regex: Pattern | None = None
    choice: Alternatives | None = None
    json_object: bool | None = None
    grammar: None = None
    structural_tag: None = None


class GenerationOptions(Supported):
    """What both kinds of completion share."""

    max_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """0 or -1: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[int, Field(ge=0, lt=2**31)], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_LOGIT_BIASES),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Pattern | None = None
    guided_choice: Alternatives | None = None

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
    def num_choices(self) -> int:
        """Answers to one prompt."""
        return self.n or 1

    @property
    def wants_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, seed: int | None) -> Sampling:
        """How tokens are drawn; None stands for OpenAI's default of each option."""
        return Sampling(
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            seed=seed,
            top_k=max(self.top_k or 0, 0),
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            logit_bias=tuple((self.logit_bias or {}).items()),
        )


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
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("`top_logprobs` needs `logprobs: true`", param="top_logprobs")
        return self

    @property
    def token_limit(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per token; None: no log-probabilities at all."""
        return self.top_logprobs or 0 if self.logprobs else None


TokenIds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
IdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
Input = str | TokenIds | Texts | IdLists


def each_of(given: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]) -> list[str | Sequence[int]]:
    """One or several texts, as text or token ids, as a list of them."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]  # type: ignore[list-item]
    return list(given)  # type: ignore[arg-type]


class CompletionRequest(GenerationOptions):
    default_max_tokens: ClassVar[int] = 16

    prompt: Input
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None

    @model_validator(mode="after")
    def _answers_something(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest("0 tokens are an answer only with `echo: true`", param="max_tokens")
        if len(self.prompts) * self.num_choices > MAX_CHOICES:
            raise InvalidRequest(f"prompts times `n` are {MAX_CHOICES} at most", param="n" if self.n else "prompt")
        return self

    @property
    def token_limit(self) -> int:
        return self.max_tokens if self.max_tokens is not None else self.default_max_tokens

    @property
    def prompts(self) -> list[str | Sequence[int]]:
        """Each prompt, as text or token ids."""
        return each_of(self.prompt)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class EmbeddingRequest(Supported):
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Only that which the vectors have: they cannot be shortened."""


class ClassifyRequest(Supported):
    input: Input


def refuse_unsupported(options: dict[str, Any]) -> None:
    """Raise InvalidRequest for the first option that would change the answer and is not there yet."""
    for name, inert in _UNSUPPORTED.items():
        if options.get(name) not in inert:
            raise InvalidRequest(f"`{name}` {_NOT_YET}", param=name, code="unsupported")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
