"""Tokenised samples and prompts on disk, in a fixed order: Arrow files, memory-mapped, so that workers share pages.

Whoever learns reads these alone, without the library that read the sources. How a row becomes tokens is `render.py`'s.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import pyarrow

from trainer.batch import NOT_LEARNED, Piece, Sample, num_targets

_FILE = "data.arrow"
_ROWS_AT_ONCE = 1000
_IDS = pyarrow.list_(pyarrow.int32())
_SAMPLE = pyarrow.schema(
    {
        "sample_id": pyarrow.int64(),
        "input_ids": _IDS,
        "labels": _IDS,
        "teacher": pyarrow.int32(),
        "length": pyarrow.int32(),
        "num_targets": pyarrow.int32(),
    }
)
_PROMPT = pyarrow.schema(
    {"sample_id": pyarrow.int64(), "input_ids": _IDS, "text": pyarrow.string(), "reference": pyarrow.string()}
)


@dataclass(frozen=True)
class Prompt:
    """A question for a model, in tokens and in words, with the answer of the data if there is one."""

    sample_id: int
    input_ids: tuple[int, ...]
    text: str
    reference: str | None


class Samples(Sequence[Sample]):
    """Tokenised samples on disk; an index is a place in this set, `sample_id` the row of the source it came from."""

    def __init__(self, directory: Path) -> None:
        columns = map(_read(directory).column, _SAMPLE.names)
        self._sample_ids, self._input_ids, self._labels, self._teachers, lengths, targets = columns
        self.lengths: tuple[int, ...] = tuple(lengths.to_pylist())
        self.num_targets: tuple[int, ...] = tuple(targets.to_pylist())
        """Learned tokens of each whole sample."""

    def num_targets_of(self, piece: Piece) -> int:
        """Learned tokens of a piece, which has lost its first one as a target."""
        labels = self._labels[piece.sample_index].values.to_numpy()
        return int((labels[piece.start + 1 : piece.end] != NOT_LEARNED).sum())

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return Sample(
            sample_id=self._sample_ids[index].as_py(),
            input_ids=self._input_ids[index].values.to_numpy().tolist(),
            labels=self._labels[index].values.to_numpy().tolist(),
            teacher=self._teachers[index].as_py(),
        )


class Prompts(Sequence[Prompt]):
    """Questions on disk, in the order of the source."""

    def __init__(self, directory: Path) -> None:
        self._rows = _read(directory)

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        (row,) = self._rows.slice(range(len(self))[index], 1).to_pylist()
        return Prompt(row["sample_id"], tuple(row["input_ids"]), row["text"], row["reference"])


def write_samples(directory: Path, samples: Iterable[Sample]) -> None:
    counted = (
        {"teacher": 0, **sample, "length": len(sample["input_ids"]), "num_targets": num_targets(sample)}
        for sample in samples
    )
    _write(directory, _SAMPLE, counted)


def write_prompts(directory: Path, prompts: Iterable[Prompt]) -> None:
    _write(directory, _PROMPT, ({**vars(prompt), "input_ids": list(prompt.input_ids)} for prompt in prompts))


def _write(directory: Path, schema: Any, rows: Iterator[dict[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(directory / _FILE), "wb") as file, pyarrow.ipc.new_file(file, schema) as writer:
        while some := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(some, schema))


def _read(directory: Path) -> Any:
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(directory / _FILE))).read_all()
