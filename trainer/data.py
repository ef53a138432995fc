"""Rows of data sets, read from where they lie. Nothing read here is unpickled (I5).

How a row becomes tokens is `render.py`'s, what is kept of them `samples.py`'s. Only who prepares a job needs this.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import datasets

from trainer.errors import TrainerError, UserError
from trainer.sources import columns, local_path, source_form

Split = Literal["train", "eval"]
_HUB_SPLITS = {"train": ("train",), "eval": ("test", "validation")}


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
