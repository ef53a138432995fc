"""A model version on its way to a directory of ours: checked file by file, there whole or not at all, resumable.

What came is kept beside the target under a name that holds the manifest's hash, so that a later download goes on there.
Asks nothing itself: it says which bytes of which file are wanted next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from athanor.v1 import model_service_pb2 as models

from cluster.client.streams import FileReading
from cluster.errors import DataLoss, InvalidInput
from trainer.atomic import replace_directory, safe_join, sha256_file

MANIFEST = "athanor.json"


class Download:
    """One download: fetch each of `files()`, then `finish()`."""

    def __init__(self, version: models.ModelVersion, directory: Path, file: str = "") -> None:
        self._version = version
        self._target = directory.absolute()
        self._only = file
        self._partial = self._target.with_name(f".{self._target.name}.{version.manifest_sha256[:16]}.partial")
        try:
            if not file and self._target.exists() and any(self._target.iterdir()):
                message = f"{directory} is not empty; name a directory that is not there"
                raise InvalidInput("DIRECTORY_NOT_EMPTY", message)
            self._partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"nothing can be written to {directory}: {error.strerror or error}; name another directory"
            raise InvalidInput("DIRECTORY_UNUSABLE", message) from error

    @property
    def reference(self) -> str:
        return f"{self._version.name}@{self._version.version}"

    def files(self) -> Iterator[FileDownload]:
        """The manifest first, whose own hash is the registry's and which holds that of every other; then what it lists.

        It is read when it was fetched: ask for the second when the first is there.
        """
        yield self._download(MANIFEST, self._version.manifest_sha256)
        listed: dict[str, Any] = json.loads((self._partial / MANIFEST).read_bytes())["files"]
        if self._only and self._only not in (*listed, MANIFEST):
            names = ", ".join(sorted(listed))
            raise InvalidInput("FILE_UNKNOWN", f"{self.reference} has no file {self._only!r}; it has {names}")
        for name, sha256 in listed.items():
            if self._only in ("", name):
                yield self._download(name, sha256)

    def finish(self) -> Path:
        """Give it its name; where it lies."""
        if not self._only:
            self._target.rmdir() if self._target.exists() else None
            replace_directory(self._partial, self._target)
            return self._target
        self._target.mkdir(parents=True, exist_ok=True)
        place = safe_join(self._target, self._only)
        place.parent.mkdir(parents=True, exist_ok=True)
        (self._partial / self._only).replace(place)
        self._forget()
        return place

    def _download(self, name: str, sha256: str) -> FileDownload:
        return FileDownload(self.reference, name, safe_join(self._partial, name), sha256)

    def _forget(self) -> None:
        """The rest of a single file's download; other files of a whole one that was begun stay."""
        left = [path for path in self._partial.iterdir() if path.name != MANIFEST]
        if not left:
            (self._partial / MANIFEST).unlink(missing_ok=True)
            self._partial.rmdir()


class FileDownload:
    """One file: what is there already counts, if in the end the whole has the right hash."""

    def __init__(self, reference: str, name: str, path: Path, sha256: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.name, self._reference, self._path, self._sha256 = name, reference, path, sha256
        self._begun = path.with_name(f"{path.name}.part")

    @property
    def is_there(self) -> bool:
        return self._path.is_file() and sha256_file(self._path) == self._sha256

    def stream(self) -> FileReading:
        """What to read: from the byte after those that lie here."""
        return FileReading(self._reference, self.name, self._begun.stat().st_size if self._begun.exists() else 0)

    def sink(self) -> FileSink:
        """Where to write it."""
        return FileSink(self._begun)

    def finish(self, sha256: str) -> None:
        """DataLoss / MODEL_ALTERED when what came is not what the manifest says; it is then thrown away."""
        if sha256 != self._sha256:
            self._begun.unlink()
            words = f"{self.name} of {self._reference} arrived with sha256 {sha256}, not {self._sha256}; try again"
            raise DataLoss("MODEL_ALTERED", f"{words}, or ask `athanor model verify {self._reference}`")
        self._begun.replace(self._path)


class FileSink:
    """Appends to a file and hashes as it goes, what lies there already included."""

    def __init__(self, path: Path) -> None:
        self._hash = hashlib.sha256()
        if path.exists():
            with path.open("rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    self._hash.update(block)
        self._file = path.open("ab")

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def close(self) -> str:
        """The hash of all of it."""
        self._file.close()
        return self._hash.hexdigest()
