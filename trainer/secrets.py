"""Secrets by reference: a job says `${secret:NAME}`, and only a process that needs the value reads it, where it runs.

From the file `$ATHANOR_SECRETS_DIR/NAME`, else from the variable `ATHANOR_SECRET_NAME`. What was read is known here, so
that it can be taken out of what the process prints and tells. Values are never written, sent or stored.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from trainer.errors import UserError

_MARK = "${secret:"
_SHORTEST = 8
"""Characters: anything shorter stands in ordinary words too, and could not be taken out of them."""
_HIDDEN = "********"
_revealed: set[str] = set()


def reveal(reference: str, field: str, environ: Mapping[str, str] = os.environ) -> str:
    """The value; UserError / SECRET_NOT_FOUND, SECRET_UNUSABLE name the field and the places that were looked at."""
    name = reference.removeprefix(_MARK).removesuffix("}")
    value = _read(name, environ)
    if value is None:
        places = f"$ATHANOR_SECRETS_DIR/{name} and $ATHANOR_SECRET_{name} of the node that runs this"
        raise UserError("SECRET_NOT_FOUND", f"{field}: there is no secret {name}; looked at {places}")
    if len(value) < _SHORTEST or not value.isprintable():
        raise UserError("SECRET_UNUSABLE", f"{field}: secret {name} is not one line of {_SHORTEST} characters or more")
    _revealed.add(value)
    return value


def log_in_to_hub(token: str | None) -> None:
    """From here on this process loads from the hub with this token; None changes nothing."""
    if token is not None:
        os.environ["HF_TOKEN"] = reveal(token, "spec.hub.token")


def _read(name: str, environ: Mapping[str, str]) -> str | None:
    if directory := environ.get("ATHANOR_SECRETS_DIR"):
        try:
            return (Path(directory) / name).read_text().strip()
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("SECRET_UNUSABLE", f"the file of secret {name} cannot be read: {error}") from None
    value = environ.get(f"ATHANOR_SECRET_{name}", "").strip()
    return value or None


def known_here(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The values of all secrets of this node that could be read here; what cannot be read cannot be printed either."""
    found = {value.strip() for name, value in environ.items() if name.startswith("ATHANOR_SECRET_")}
    if directory := environ.get("ATHANOR_SECRETS_DIR"):
        with suppress(OSError):
            for path in Path(directory).iterdir():
                with suppress(OSError, UnicodeDecodeError):
                    found.add(path.read_text().strip())
    return frozenset(value for value in found if len(value) >= _SHORTEST and value.isprintable())


def without_secrets(text: str) -> str:
    """The text without any value that this process has read."""
    for value in _revealed:
        text = text.replace(value, _HIDDEN)
    return text


class Redactor:
    """The same for a stream of bytes, whose pieces may cut a value in two."""

    def __init__(self, values: Collection[str] | None = None) -> None:
        """Of these values; without them of all that this process has read when a piece comes."""
        self._values = values
        self._held = b""

    def pass_on(self, chunk: bytes) -> bytes:
        """What may be shown now; the beginning of what could become a value is held back."""
        data = self._held + chunk
        values = [value.encode() for value in (_revealed if self._values is None else self._values)]
        for value in values:
            data = data.replace(value, _HIDDEN.encode())
        kept = max((_overlap(data, value) for value in values), default=0)
        self._held = data[len(data) - kept :]
        return data[: len(data) - kept]

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return held


def _overlap(data: bytes, value: bytes) -> int:
    """How many bytes at the end of `data` are the beginning of `value`."""
    longest = min(len(data), len(value) - 1)
    return next((size for size in range(longest, 0, -1) if value.startswith(data[-size:])), 0)


def misplaced(node: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where a reference stands in a job's settings; whoever takes one knows its own place."""
    if isinstance(node, str):
        if _MARK in node:
            yield path
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from misplaced(value, (*path, str(key)))
    elif isinstance(node, list | tuple):
        for at, value in enumerate(node):
            yield from misplaced(value, (*path, at))
