"""Where training data may come from, told by the form of its name, and a look at its first rows without loading it.

Standard library only (pyarrow for Parquet), so that a job file is checked in milliseconds. Loading is `data.load_rows`.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Literal

from trainer.errors import UserError
from trainer.spec import ColumnsSpec
from trainer.violations import did_you_mean

SourceForm = Literal["json", "csv", "parquet", "hub"]
Format = Literal["chat", "prompt_completion", "text"]
_FORMS: dict[str, SourceForm] = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
SUFFIXES = tuple(_FORMS)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_ROWS_LOOKED_AT = 50


def source_form(source: str) -> SourceForm:
    """By the ending; `org/name` without one is a hub id."""
    if form := _FORMS.get(Path(source).suffix.lower()):
        return form
    if _HUB_ID.match(source) and not Path(source).exists():
        return "hub"
    if Path(source).expanduser().is_dir():
        raise UserError("DATA_INVALID", f"{source} is a directory; name a .jsonl, .csv or .parquet file in it")
    raise UserError("DATA_INVALID", f"{source!r} is neither a .jsonl, .csv or .parquet file nor a hub id (org/name)")


def local_path(source: str) -> Path:
    """The file of a source that is one; DATA_MISSING if it is not there."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise UserError("DATA_INVALID", f"{source} is a directory; name a .jsonl, .csv or .parquet file in it")
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else ""
        raise UserError("DATA_MISSING", f"there is no file {path.absolute()}{near}")
    return path


def columns(source: str) -> tuple[str, ...] | None:
    """The columns of a file, None for a hub id; DATA_MISSING, DATA_EMPTY, DATA_INVALID say what is wrong with it."""
    form = source_form(source)
    if form == "hub":
        return None
    path = local_path(source)
    try:
        names = {"json": _json_columns, "csv": csv_columns, "parquet": _parquet_columns}[form](path)
    except UnicodeDecodeError as error:
        raise UserError("DATA_INVALID", f"{source} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not names:
        raise UserError("DATA_EMPTY", f"{source} holds no rows")
    return names


def csv_columns(path: Path) -> tuple[str, ...]:
    """The header line; nothing if no row follows it."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
        return tuple(header) if any(line.strip() for line in file) else ()


def _json_columns(path: Path) -> tuple[str, ...]:
    names: dict[str, None] = {}
    with path.open(encoding="utf-8") as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        for number, line in itertools.islice(lines, _ROWS_LOOKED_AT):
            names.update(dict.fromkeys(_json_row(path, number, line)))
    return tuple(names)


def _json_row(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError("DATA_INVALID", f"{path} line {number} is not JSON: {error}; one object on each line") from None
    if not isinstance(row, dict):
        raise UserError("DATA_INVALID", f"{path} line {number} is not a JSON object; write one object on each line")
    return row


def _parquet_columns(path: Path) -> tuple[str, ...]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError("DATA_INVALID", f"{path} is not a Parquet file: {error}") from None
    with file:
        return tuple(file.schema_arrow.names) if file.metadata.num_rows else ()


def missing_columns(present: tuple[str, ...], names: ColumnsSpec, format: Format, *, labelled: bool) -> dict[str, str]:
    """Role of each column that is needed and not there -> sentence; `labelled` data must carry completions."""
    roles = {"chat": ["messages"], "prompt_completion": ["prompt", "completion"], "text": ["text"]}[format]
    wanted = {role: getattr(names, role) for role in roles if labelled or role != "completion"}
    if names.teacher_key is not None:
        wanted["teacher_key"] = names.teacher_key
    return {role: _no_column(role, name, present) for role, name in wanted.items() if name not in present}


def _no_column(role: str, name: str, present: tuple[str, ...]) -> str:
    hint = did_you_mean(name, list(present))
    return f"there is no column {name!r}, only {', '.join(present)}{hint}; name the right one in data.columns.{role}"
