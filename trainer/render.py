"""One row of data to token ids, and which of them are learned: the only place that knows how a sample looks to a model.

chat: the turns of the assistant are learned. prompt_completion: the completion is, as a user's and an assistant's turn
where the tokenizer has a chat template (so that what is served answers chats), else one after the other. text: all.
A row that cannot be used is a ValueError whose sentence lacks only the place of the row. Nothing is cut here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from trainer.batch import NOT_LEARNED
from trainer.errors import UserError
from trainer.spec import DataSpec

Row = Mapping[str, Any]
Message = dict[str, Any]
Piece = tuple[str, bool]
"""Text, and whether it is learned."""


@dataclass(frozen=True)
class Rendered:
    """Token ids and, aligned with them, labels."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_learned(self) -> int:
        """Positions that are learned; the first token never is, since nothing comes before it."""
        return sum(label != NOT_LEARNED for label in self.labels[1:])

    def cut(self, max_length: int) -> Rendered:
        return Rendered(self.input_ids[:max_length], self.labels[:max_length])


@dataclass(frozen=True)
class Question:
    """What a model is asked to complete."""

    text: str
    """For people: the last message of the user, or the prompt."""
    reference: str | None
    """The completion of the data, if it has one."""
    input_ids: list[int]


class Renderer:
    """Renders the rows of one job."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: DataSpec) -> None:
        if data.format == "chat" and not tokenizer.chat_template:
            mend = "use data.format prompt_completion, or a model whose tokenizer has one"
            raise UserError(
                "CHAT_TEMPLATE_MISSING", f"data.format is chat, but the tokenizer has no chat template; {mend}"
            )
        self._tokenizer = tokenizer
        self._data = data

    def sample(self, row: Row) -> Rendered:
        """For learning; ValueError if the row has nothing to learn."""
        if self._data.format == "text":
            return self._learn_all(_text(row, self._data.columns.text))
        if self._tokenizer.chat_template:
            rendered = self._tokens(list(self._chat_pieces(conversation(row, self._data))))
        else:
            rendered = self._plain(row)
        if rendered.num_learned == 0:
            raise ValueError("has no completion to learn")
        return rendered

    def question(self, row: Row) -> Question:
        """For generation: everything before the last answer, which becomes the reference."""
        messages = conversation(row, self._data)
        answer = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
        if not messages:
            raise ValueError("has no prompt before its answer")
        text = messages[-1]["content"]
        if self._tokenizer.chat_template:
            return Question(text, answer, self._ids(self._rendered(messages, prompt=True)))
        return Question(text, answer, self._ids(text, special=True))

    def answered(self, question_ids: Sequence[int], answer_ids: Sequence[int], *, ended: bool) -> Rendered:
        """A question with the answer a model gave as token ids, which is learned."""
        answer = [*answer_ids, *([self._tokenizer.eos_token_id] if ended else [])]
        return Rendered([*question_ids, *answer], [NOT_LEARNED] * len(question_ids) + answer)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        return ids

    def _learn_all(self, text: str) -> Rendered:
        ids = self._ids(text, special=True)
        if ids[-1:] != [self._tokenizer.eos_token_id]:
            ids.append(self._tokenizer.eos_token_id)
        return Rendered(ids, list(ids))

    def _plain(self, row: Row) -> Rendered:
        """Prompt, completion and end token, for a tokenizer without a chat template."""
        prompt, *rest = conversation(row, self._data)
        ids = self._ids(prompt["content"], special=True)
        if not rest:
            return Rendered(ids, [NOT_LEARNED] * len(ids))
        return self.answered(ids, self._ids(rest[0]["content"]), ended=True)

    def _rendered(self, messages: list[Message], *, prompt: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except TemplateError as error:
            raise ValueError(f"is refused by the chat template: {error}") from error
        return text

    def _chat_pieces(self, messages: list[Message]) -> Iterator[Piece]:
        """The conversation as text, cut where the assistant begins and ends to speak."""
        done = ""
        for at, message in enumerate(messages):
            if message["role"] == "assistant":
                for learned, text in enumerate(
                    (self._rendered(messages[:at], prompt=True), self._rendered(messages[: at + 1]))
                ):
                    yield _continuation(done, text), bool(learned)
                    done = text
        if messages[-1]["role"] != "assistant":
            yield _continuation(done, self._rendered(messages)), False

    def _tokens(self, pieces: list[Piece]) -> Rendered:
        """Token ids of the whole; where a token would reach over a border, the pieces are tokenised apart."""
        parts = self._parts([text for text, _ in pieces])
        rendered = Rendered([], [])
        for ids, (_, learned) in zip(parts, pieces, strict=True):
            rendered.input_ids.extend(ids)
            rendered.labels.extend(self._until_end(ids) if learned else [NOT_LEARNED] * len(ids))
        if pieces[-1][1] and self._tokenizer.eos_token_id not in parts[-1]:
            rendered.input_ids.append(self._tokenizer.eos_token_id)
            rendered.labels.append(self._tokenizer.eos_token_id)
        return rendered

    def _parts(self, texts: list[str]) -> list[list[int]]:
        whole, start, parts = self._ids("".join(texts)), 0, []
        for at in range(1, len(texts) + 1):
            prefix = self._ids("".join(texts[:at]))
            if whole[: len(prefix)] != prefix:
                return [self._ids(text) for text in texts]
            parts.append(prefix[start:])
            start = len(prefix)
        return parts

    def _until_end(self, ids: list[int]) -> list[int]:
        """Labels of an answer: what a template puts after the end token (a line break) is never generated."""
        eos = self._tokenizer.eos_token_id
        kept = len(ids) - ids[::-1].index(eos) if eos in ids else len(ids)
        return ids[:kept] + [NOT_LEARNED] * (len(ids) - kept)


def texts(row: Row, data: DataSpec) -> list[str]:
    """All that is written in a row: what a tokenizer is trained on."""
    if data.format == "text":
        return [_text(row, data.columns.text)]
    return [message["content"] for message in conversation(row, data)]


def conversation(row: Row, data: DataSpec) -> list[Message]:
    """The messages of a row; prompt and completion count as user and assistant."""
    if data.format == "chat":
        return _messages(row.get(data.columns.messages))
    messages = [{"role": "user", "content": _text(row, data.columns.prompt)}]
    completion = row.get(data.columns.completion)
    return messages if completion in (None, "") else [*messages, {"role": "assistant", "content": str(completion)}]


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if value in (None, ""):
        raise ValueError(f"has nothing in column {column!r}")
    return str(value)


def _messages(value: object) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError("has no list of messages; write [{role: user, content: ...}, {role: assistant, content: ...}]")
    return [_message(message) for message in value]


def _message(value: object) -> Message:
    if not isinstance(value, Mapping) or not all(isinstance(value.get(key), str) for key in ("role", "content")):
        raise ValueError("has a message without a role and a content that are text")
    return {key: part for key, part in value.items() if part is not None}


def _continuation(done: str, text: str) -> str:
    if not text.startswith(done):
        raise ValueError(
            "cannot be masked: this chat template writes earlier turns differently when more follow "
            "(it is not prefix-stable); use a template that only appends"
        )
    return text[len(done) :]
