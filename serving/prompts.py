"""What a client wrote, as token ids, and token ids as text: the tokenizer's side of serving.

Control tokens that stand in a message are text there; only the chat template writes real ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from serving.errors import InvalidRequest
from serving.guides import Form, Grammars, TokenGuide

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prompts:
    """The tokenizer of a served model."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, vocab_size: int, end_ids: frozenset[int] | None = None
    ) -> None:
        """`end_ids`: tokens that end an answer; without them, the tokenizer's own."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        own = tokenizer.eos_token_id
        self._end_ids = end_ids if end_ids is not None else frozenset([own] if own is not None else [])

    @property
    def knows_chats(self) -> bool:
        """It has a chat template."""
        return bool(self._tokenizer.chat_template)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """A conversation up to where the assistant begins to speak."""
        if not self.knows_chats:
            raise InvalidRequest("this model has no chat template; ask /v1/completions", param="messages")
        try:
            encoded = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, sanitize_control_tokens=True
            )
        except TemplateError as error:
            raise InvalidRequest(f"the model's chat template refuses this: {error}", param="messages") from error
        return tuple(encoded["input_ids"])

    def text(self, prompt: str | Sequence[int], *, param: str = "prompt") -> tuple[int, ...]:
        """A plain prompt: text, or ids that are taken as they are."""
        ids = self._tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        if not ids:
            raise InvalidRequest("the prompt is empty", param=param)
        if max(ids) >= self._vocab_size:
            raise InvalidRequest(f"a token id must be below {self._vocab_size}", param=param)
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without control tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What one token writes, which may be half a character; a control token writes its name."""
        return self._grammars.token_bytes(token_id)

    def guide(self, form: Form) -> TokenGuide:
        """A mask for an answer of this form. Takes up to a second: not for event loops."""
        return self._grammars.compile(form)

    def check_ids(self, ids: Sequence[int], *, param: str) -> None:
        """InvalidRequest for ids that are no tokens."""
        if ids and max(ids) >= self._vocab_size:
            raise InvalidRequest(f"a token id must be below {self._vocab_size}", param=param)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._tokenizer, self._end_ids)
