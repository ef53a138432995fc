"""Data sets: rows read from where they lie, and tokenised samples kept on disk, memory-mapped, in a fixed order.

How a row becomes tokens is `render.py`'s; what a job keeps is `prepare.py`'s. Nothing read here is unpickled (I5).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import datasets
from datasets.arrow_writer import ArrowWriter

from trainer.batch import NOT_LEARNED, Piece, Sample, num_targets
from trainer.errors import TrainerError, UserError
from trainer.sources import columns, local_path, source_form

Split = Literal["train", "eval"]
_HUB_SPLITS = {"train": ("train",), "eval": ("test", "validation")}
_FILE = "data.arrow"
_IDS = datasets.List(datasets.Value("int32"))
_SAMPLE = datasets.Features(
    {
        "sample_id": datasets.Value("int64"),
        "input_ids": _IDS,
        "labels": _IDS,
        "teacher": datasets.Value("int32"),
        "length": datasets.Value("int32"),
        "num_targets": datasets.Value("int32"),
    }
)
_PROMPT = datasets.Features(
    {
        "sample_id": datasets.Value("int64"),
        "input_ids": _IDS,
        "text": datasets.Value("string"),
        "reference": datasets.Value("string"),
    }
)


@dataclass(frozen=True)
class Prompt:
    """A question for a model, in tokens and in words, with the answer of the data if there is one."""

    sample_id: int
    input_ids: tuple[int, ...]
    text: str
    reference: str | None


def load_rows(source: str, *, split: Split, cache_dir: Path) -> datasets.Dataset:
    """The rows of a file or of a hub data set (split `train`; for evaluation `test`, else `validation`).

    Every cell of a CSV is text, an empty one too. `cache_dir` holds what the library keeps.
    """
    datasets.disable_progress_bars()
    form = source_form(source)
    if form == "hub":
        return _load_hub(source, split, cache_dir)
    names = columns(source) or ()
    options = {"features": _all_text(names), "keep_default_na": False} if form == "csv" else {}
    try:
        return datasets.load_dataset(
            form, data_files=str(local_path(source)), split="train", cache_dir=str(cache_dir), **options
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise UserError("DATA_INVALID", f"{source} cannot be read: {error.__cause__ or error}") from error


def _all_text(names: Iterable[str]) -> datasets.Features:
    return datasets.Features({name: datasets.Value("string") for name in names})


def _load_hub(source: str, split: Split, cache_dir: Path) -> datasets.Dataset:
    try:
        found = datasets.load_dataset(source, cache_dir=str(cache_dir))
    except ConnectionError as error:
        raise TrainerError("HUB_UNREACHABLE", f"the hub cannot be reached for data set {source}: {error}") from error
    except (datasets.exceptions.DatasetNotFoundError, ValueError, RuntimeError) as error:
        raise UserError("DATA_MISSING", f"data set {source} cannot be loaded from the hub: {error}") from error
    name = next((name for name in _HUB_SPLITS[split] if name in found), None)
    if name is None:
        wanted = " or ".join(_HUB_SPLITS[split])
        raise UserError("DATA_MISSING", f"{source} has no split {wanted}, only {', '.join(found)}")
    return _named_classes(found[name])


def _named_classes(rows: datasets.Dataset) -> datasets.Dataset:
    """Class numbers become the class names, which is what a model reads and writes."""
    classes = {name: kind for name, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
    if not classes:
        return rows
    features = datasets.Features(
        {name: datasets.Value("string") if name in classes else kind for name, kind in rows.features.items()}
    )
    return rows.map(
        lambda row: {name: kind.int2str(row[name]) for name, kind in classes.items()},
        features=features,
        new_fingerprint=f"{rows._fingerprint}-named",
    )


def rows_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """sha256 over the rows, each as canonical JSON: the same data has the same one, whatever file it lay in."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()


class Samples(Sequence[Sample]):
    """Tokenised samples on disk; an index is a place in this set, `sample_id` the row of the source it came from."""

    def __init__(self, directory: Path) -> None:
        table = datasets.Dataset.from_file(str(directory / _FILE)).data
        columns = map(table.column, _SAMPLE)
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
        self._rows = datasets.Dataset.from_file(str(directory / _FILE))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        row = self._rows[index]
        return Prompt(row["sample_id"], tuple(row["input_ids"]), row["text"], row["reference"])


def write_samples(directory: Path, samples: Iterable[Sample]) -> None:
    counted = (
        {"teacher": 0, **sample, "length": len(sample["input_ids"]), "num_targets": num_targets(sample)}
        for sample in samples
    )
    _write(directory, _SAMPLE, counted)


def write_prompts(directory: Path, prompts: Iterable[Prompt]) -> None:
    _write(directory, _PROMPT, ({**vars(prompt), "input_ids": list(prompt.input_ids)} for prompt in prompts))


def _write(directory: Path, features: datasets.Features, rows: Iterator[dict[str, Any]]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(directory / _FILE), features=features) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
