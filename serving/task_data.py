"""Labelled examples for the gate of a canary: questions, each with the one answer that is right.

A .jsonl with `prompt` and `completion`, or with `messages` that end with the answer; or a .csv whose header names
`prompt` and `completion`. Every cell is text. What is wrong is told by its line, never by what stands there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ServingError

MOST_BYTES = 64 * 1024 * 1024
_MEND = 'write {"prompt": ..., "completion": ...} or {"messages": [...]} that end with the assistant\'s answer'
Message = Mapping[str, str]


class TaskDataError(ServingError):
    """The labelled examples of a gate cannot be read, or are none."""


@dataclass(frozen=True)
class Example:
    """A question and its answer."""

    messages: tuple[Message, ...]
    """Up to the answer; a plain prompt is one message of the user."""
    reference: str

    @property
    def text(self) -> str:
        """The last thing that was said: the question, for a model that knows no conversations."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class TaskData:
    """One file of them."""

    examples: tuple[Example, ...]
    sha256: str

    def shuffled(self, seed: str) -> tuple[Example, ...]:
        """In an order that depends on the seed alone."""
        found = [*self.examples]
        random.Random(seed).shuffle(found)
        return tuple(found)


def is_right(answer: str, reference: str) -> bool:
    """Equal, white space apart: as the evaluation of a distillation counts exact matches."""
    return answer.split() == reference.split()


def read_task_data(path: Path, sha256: str | None = None) -> TaskData:
    """All examples of a file; TaskDataError says what is wrong with it, or that it is not the one of this `sha256`."""
    if path.suffix.lower() not in (".jsonl", ".csv"):
        raise TaskDataError(f"{path} is neither a .jsonl nor a .csv file; name one")
    text, found_sha256 = _content(path)
    if sha256 not in (None, found_sha256):
        raise TaskDataError(f"{path} is another file than when the canary was asked for; ask for it again")
    read = _csv_examples if path.suffix.lower() == ".csv" else _json_examples
    examples = tuple(read(path, text))
    if not examples:
        raise TaskDataError(f"{path} holds no examples; {_MEND}, one on each line")
    return TaskData(examples, found_sha256)


def _content(path: Path) -> tuple[str, str]:
    try:
        if not path.is_file():
            raise TaskDataError(f"there is no file {path}; name one that control plane and replicas can read")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TaskDataError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_BYTES:
        raise TaskDataError(f"{path} has more than {MOST_BYTES >> 20} MiB; some thousand examples are enough")
    try:
        return content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise TaskDataError(f"{path} is not UTF-8 text (byte {error.start})") from None


def _json_examples(path: Path, text: str) -> Iterator[Example]:
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise TaskDataError(f"{path} line {number} is not JSON; write one object on each line") from None
        if not isinstance(row, dict):
            raise TaskDataError(f"{path} line {number} is not a JSON object; {_MEND}")
        yield _conversation(path, number, row) if "messages" in row else _pair(path, number, row)


def _csv_examples(path: Path, text: str) -> Iterator[Example]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        missing = [name for name in ("prompt", "completion") if name not in (rows.fieldnames or ())]
        if missing:
            raise TaskDataError(
                f"{path} has no column {missing[0]!r}; its first line must name `prompt` and `completion`"
            )
        for row in rows:
            yield _pair(path, rows.line_num, row)
    except csv.Error as error:
        raise TaskDataError(f"{path} line {rows.line_num + 1} is no CSV: {error}; close every quote") from None


def _pair(path: Path, number: int, row: Mapping[str, Any]) -> Example:
    for name in ("prompt", "completion"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise TaskDataError(f"{path} line {number} has no text in `{name}`; {_MEND}")
        _whole(path, number, row[name])
    return Example(({"role": "user", "content": row["prompt"]},), row["completion"])


def _conversation(path: Path, number: int, row: Mapping[str, Any]) -> Example:
    messages = row["messages"]
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise TaskDataError(f"{path} line {number}: every message needs a role and a content that are text; {_MEND}")
    *asked, answer = messages if len(messages) > 1 else ({}, {})
    if answer.get("role") != "assistant" or not answer["content"].strip() or not asked:
        raise TaskDataError(f"{path} line {number} has no question with an answer of the assistant at its end; {_MEND}")
    for message in messages:
        _whole(path, number, message["role"] + message["content"])
    return Example(tuple(_plain(asked)), answer["content"])


def _whole(path: Path, number: int, text: str) -> None:
    """JSON can write half of a character; no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TaskDataError(
            f"{path} line {number} has half of a character: one of \\ud800 to \\udfff without its pair; write both"
        ) from None


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _plain(messages: Sequence[Mapping[str, str]]) -> Iterator[Message]:
    for message in messages:
        yield {"role": message["role"], "content": message["content"]}
