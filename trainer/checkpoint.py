"""Checkpoints of one learner: whole or not there at all, checked before use, read without unpickling anything (I4, I5).

A directory `step-00000200` holds the whole weights, each worker's optimizer shard with its random state, and
`manifest.json` with the sha256 of every file. A torn or altered one is passed over for the one before it, aloud.
What is in the tensors is the engine's affair.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import atomic
from trainer.errors import CheckpointError, UserError
from trainer.listener import Listener
from trainer.peers import Peers
from trainer.storage import writing

MANIFEST, WEIGHTS = "manifest.json", "model.safetensors"
_NAME = re.compile(r"^step-(\d{8})$")
_RANDOM = "random."


@dataclass(frozen=True)
class Progress:
    """How far a learner is. The sample cursor is `step` alone: the order of samples is a pure function of it (I2)."""

    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens seen by all workers, padding not counted."""
    seconds: float = 0.0
    """Spent learning, over all attempts."""
    loss: float = 0.0
    """Of the last step."""
    memory: Mapping[str, float] = field(default_factory=dict)
    """What the objective remembers from step to step."""


@dataclass(frozen=True)
class Topology:
    """What must be the same for a shard to fit."""

    world: int
    zero_stage: int
    precision: str
    engine: str


@dataclass(frozen=True)
class Checkpoint:
    """One that was found whole."""

    path: Path
    progress: Progress
    topology: Topology

    def weights(self) -> dict[str, Tensor]:
        return load_file(self.path / WEIGHTS)

    def shard(self, rank: int) -> dict[str, Tensor]:
        """A worker's optimizer state; its random state is put in place on the way."""
        tensors = load_file(self.path / _shard_name(rank))
        _set_random_state({name: tensors.pop(name) for name in list(tensors) if name.startswith(_RANDOM)})
        return tensors

    def require(self, topology: Topology) -> None:
        """CheckpointError if the shards were written by another topology."""
        if self.topology == topology:
            return
        then, now = asdict(self.topology), asdict(topology)
        changed = ", ".join(f"{name} was {then[name]} and is {now[name]}" for name in now if then[name] != now[name])
        message = f"{self.path} cannot be continued: {changed}; use the settings it was made with, or a new job"
        raise CheckpointError("CHECKPOINT_TOPOLOGY", message)


def latest_good(directory: Path, listener: Listener) -> Checkpoint | None:
    """The newest whole checkpoint; each damaged one on the way is named to the listener."""
    for path in reversed(_present(directory)):
        try:
            return read(path)
        except CheckpointError as error:
            listener.event(error.reason, f"{error}; the one before it is used")
    return None


def read(path: Path) -> Checkpoint:
    """Checks every file of a checkpoint; CheckpointError CHECKPOINT_DAMAGED if one is torn, altered or missing."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = _object(manifest, "files")
        found = Checkpoint(path, Progress(**_object(manifest, "progress")), Topology(**_object(manifest, "topology")))
        whole = (found.progress.step, found.progress.tokens, found.topology.world)
        if not all(type(number) is int for number in whole):
            raise TypeError(f"not whole numbers: {whole}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError("CHECKPOINT_DAMAGED", f"{path} has no readable manifest ({error})") from error
    for name, digest in files.items():
        if not _is_file_with(path, name, digest):
            raise CheckpointError("CHECKPOINT_DAMAGED", f"{path}: {name} is torn, altered or missing")
    _check_complete(path, set(files), found.topology)
    return found


def _object(manifest: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = manifest[key]
    if not isinstance(value, dict):
        raise TypeError(f"{key} is no object")
    return value


def _is_file_with(path: Path, name: str, digest: object) -> bool:
    """Whether the file lies in the checkpoint and has that sha256; a name that leads out of it does not (I5)."""
    try:
        return atomic.sha256_file(atomic.safe_join(path, name)) == digest
    except (UserError, OSError):
        return False


class CheckpointWriter:
    """Writes the checkpoints of one learner, all workers together, and keeps the newest `keep` of them."""

    def __init__(
        self, directory: Path, *, keep: int, topology: Topology, spec: Mapping[str, Any], peers: Peers
    ) -> None:
        self._directory = directory
        self._keep = keep
        self._topology = topology
        self._spec = spec
        self._peers = peers

    def save(self, progress: Progress, shard: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Path:
        """Collective: every worker brings its shard, the first one the weights. StorageError if there is no room."""
        final = self._directory / f"step-{progress.step:08d}"
        temporary = self._directory / f".{final.name}.tmp"
        with writing(final, temporary):
            self._write(progress, shard, weights, temporary, final)
        return final

    def _write(
        self,
        progress: Progress,
        shard: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        temporary: Path,
        final: Path,
    ) -> None:
        if self._peers.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self._peers.barrier()
        save_file({**shard, **_random_state()}, temporary / _shard_name(self._peers.rank))
        if self._peers.is_first:
            save_file(dict(weights), temporary / WEIGHTS, metadata={"format": "pt"})
        self._peers.barrier()
        if self._peers.is_first:
            self._write_manifest(temporary, progress)
            atomic.replace_directory(temporary, final)
            self._prune(final)
        self._peers.barrier()

    def _write_manifest(self, directory: Path, progress: Progress) -> None:
        names = [WEIGHTS, *(_shard_name(rank) for rank in range(self._topology.world))]
        manifest = {
            "step": progress.step,
            "progress": asdict(progress),
            "topology": asdict(self._topology),
            "files": {name: atomic.sha256_file(directory / name) for name in names},
            "spec": self._spec,
        }
        atomic.write_json(directory / MANIFEST, manifest)

    def _prune(self, newest: Path) -> None:
        """Keeps the newest. Any past the one just saved was found damaged, else this attempt had gone on from there."""
        present = _present(self._directory)
        for path in (*present[present.index(newest) + 1 :], *present[: present.index(newest) + 1][: -self._keep]):
            shutil.rmtree(path)


def _present(directory: Path) -> list[Path]:
    """Checkpoint directories, oldest first; what was being written when a worker died is not among them."""
    found = directory.iterdir() if directory.is_dir() else iter(())
    return sorted(path for path in found if _NAME.match(path.name))


def _check_complete(path: Path, listed: set[str], topology: Topology) -> None:
    missing = {WEIGHTS, *(_shard_name(rank) for rank in range(topology.world))} - listed
    if missing:
        raise CheckpointError("CHECKPOINT_DAMAGED", f"{path}: its manifest lacks {min(missing)}")


def _shard_name(rank: int) -> str:
    return f"optimizer-{rank:05d}.safetensors"


def _random_state() -> dict[str, Tensor]:
    """Of this process' generators, as bytes."""
    found = {f"{_RANDOM}cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state()
    return found


def _set_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state[f"{_RANDOM}cpu"])
    if torch.cuda.is_available() and f"{_RANDOM}cuda" in state:
        torch.cuda.set_rng_state(state[f"{_RANDOM}cuda"])
