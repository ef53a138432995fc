"""Constrained output: a request's JSON schema, regular expression or choice becomes a mask over the next token.

llguidance does the work; here is what a request may ask for, what is refused, and the adapter to the engine's `Guide`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from serving.errors import EngineFailed, InvalidRequest

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions
    from transformers import PreTrainedTokenizerBase

    from serving.schemas import GenerationOptions

_MOST_CACHED = 64
_MAX_GRAMMAR = 256 * 1024  # characters
# One space, or a line break and an indentation: whitespace without end would never come to the next value.
_JSON_LAYOUT: JsonCompileOptions = {"whitespace_pattern": r"(\x20?|\x0A\x20{0,32})"}


@dataclass(frozen=True)
class Form:
    """How an answer must look, and the option that says so."""

    param: str
    grammar: str


def asked_form(body: GenerationOptions) -> Form | None:
    """The one form that a request asks for, as llguidance's grammar; InvalidRequest where it asks for two."""
    asked = [*_from_response_format(body), *_from_structured_outputs(body), *_from_guided(body)]
    if len(asked) > 1:
        names = " and ".join(f"`{form.param}`" for form in asked)
        raise InvalidRequest(f"{names} cannot both say how the answer looks; leave one out", param=asked[1].param)
    return asked[0] if asked else None


def _from_response_format(body: GenerationOptions) -> list[Form]:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return []
    schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_
    return [_json_form("response_format", schema)]


def _from_structured_outputs(body: GenerationOptions) -> list[Form]:
    wanted, name = body.structured_outputs, "structured_outputs"
    if wanted is None:
        return []
    return [
        *([_json_form(f"{name}.json", wanted.json_)] if wanted.json_ is not None else []),
        *([_json_form(f"{name}.json_object", {"type": "object"})] if wanted.json_object else []),
        *([_regex_form(f"{name}.regex", wanted.regex)] if wanted.regex is not None else []),
        *([_choice_form(f"{name}.choice", wanted.choice)] if wanted.choice is not None else []),
    ]


def _from_guided(body: GenerationOptions) -> list[Form]:
    return [
        *([_json_form("guided_json", body.guided_json)] if body.guided_json is not None else []),
        *([_regex_form("guided_regex", body.guided_regex)] if body.guided_regex is not None else []),
        *([_choice_form("guided_choice", body.guided_choice)] if body.guided_choice is not None else []),
    ]


def _json_form(param: str, schema: Mapping[str, object] | str) -> Form:
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return Form(param, LLMatcher.grammar_from_json_schema(text, defaults=_JSON_LAYOUT))
    except ValueError as error:
        raise InvalidRequest(f"{param}: no JSON schema: {error}", param=param) from error


def _regex_form(param: str, pattern: str) -> Form:
    return Form(param, LLMatcher.grammar_from_regex(pattern))


def _choice_form(param: str, choices: Sequence[str]) -> Form:
    alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return Form(param, LLMatcher.grammar_from_lark(f"start: {alternatives}"))


class Grammars:
    """Forms for one tokenizer. Compiled ones are kept, since clients ask for the same again and again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids
        self._lock = Lock()  # held for moments only: the event loop takes it too
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, form: Form) -> TokenGuide:
        """A fresh guide; InvalidRequest says what is wrong with the form. Takes up to a second: not for event loops."""
        with self._lock:
            matcher = self._compiled.get(form.grammar)
        if matcher is None:
            matcher = self._matcher(form)
        with self._lock:
            self._compiled[form.grammar] = matcher
            self._compiled.move_to_end(form.grammar)
            if len(self._compiled) > _MOST_CACHED:
                self._compiled.popitem(last=False)
            return TokenGuide(matcher.deep_copy())

    def token_bytes(self, token_id: int) -> bytes:
        """What a token writes; of a control token, its name."""
        if self._vocabulary is None:
            text: str = self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
            return text.encode()
        return bytes(self._vocabulary.decode_bytes([token_id]))

    def _matcher(self, form: Form) -> LLMatcher:
        if len(form.grammar) > _MAX_GRAMMAR:
            raise InvalidRequest(f"{form.param}: more than {_MAX_GRAMMAR} characters", param=form.param)
        if self._vocabulary is None:
            raise InvalidRequest("this model's tokenizer cannot constrain output", param=form.param, code="unsupported")
        matcher = LLMatcher(self._vocabulary, form.grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n\n")[0]
            raise InvalidRequest(f"{form.param}: {reason}", param=form.param)
        return matcher

    @cached_property
    def _vocabulary(self) -> LLTokenizer | None:
        """Made when first needed: it takes a second for a large vocabulary. None: a tokenizer in Python alone."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        plain = type(backend).from_str(backend.to_str())
        plain.no_padding()
        plain.no_truncation()
        num_tokens = max(self._tokenizer.get_vocab().values()) + 1
        return LLTokenizer(plain.to_str(), n_vocab=num_tokens, eos_token=sorted(self._end_ids))


class TokenGuide:
    """The state of one constrained answer, as the engine asks for it."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    def mask(self) -> NDArray[np.int32]:
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32)
        self._check()
        return mask

    def advance(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def copy(self) -> TokenGuide:
        """Another answer from the same state."""
        return TokenGuide(self._matcher.deep_copy())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise EngineFailed(f"constrained output: {self._matcher.get_error()}")
