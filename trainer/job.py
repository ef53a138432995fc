"""One job as the learning side sees it: its validated spec and the places of its files. Touches no file, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from trainer.errors import UserError
from trainer.spec import DistillSpec, FineTuneSpec

ModelForm = Literal["registry", "directory", "hub"]
_REGISTRY = re.compile(r"^[a-z][a-z0-9-]*@[a-z0-9][a-z0-9-]*$")


def model_form(reference: str) -> ModelForm:
    """Tells `name@alias`, a directory (`/…`, `./…`, `../…`, `~…`) and a hub id apart by their form alone."""
    if _REGISTRY.match(reference):
        return "registry"
    return "directory" if reference.startswith(("/", "./", "../", "~")) or reference in (".", "..") else "hub"


@dataclass(frozen=True)
class JobContext:
    """Picklable; the same on every process of the job."""

    job_dir: Path
    kind: str
    spec: FineTuneSpec | DistillSpec
    models: Mapping[str, str] = field(default_factory=dict)
    """Registry reference -> model directory."""

    @property
    def uid(self) -> str:
        return self.job_dir.name

    @property
    def prepared_dir(self) -> Path:
        return self.job_dir / "prepared"

    @property
    def tokenizer_dir(self) -> Path:
        return self.prepared_dir / "tokenizer"

    @property
    def labels_dir(self) -> Path:
        return self.job_dir / "labels"

    @property
    def progress_path(self) -> Path:
        return self.job_dir / "progress.json"

    @property
    def report_dir(self) -> Path:
        return self.job_dir / "report"

    def role_dir(self, role: str) -> Path:
        return self.job_dir / role

    def checkpoints_dir(self, role: str) -> Path:
        return self.role_dir(role) / "checkpoints"

    def metrics_path(self, role: str) -> Path:
        return self.role_dir(role) / "metrics.jsonl"

    def samples_path(self, role: str, rank: int) -> Path:
        return self.role_dir(role) / f"samples-{rank}.jsonl"

    def model_dir(self, role: str) -> Path:
        return self.role_dir(role) / "model"

    def label_path(self, rank: int) -> Path:
        return self.labels_dir / f"part-{rank}.jsonl"

    def evaluation_path(self, role: str) -> Path:
        """`role` is a learner or `teacher`."""
        return self.job_dir / "evaluation" / f"{role}.jsonl"

    @property
    def teacher(self) -> str | None:
        """Directory or hub id of the first teacher, None for a job without one."""
        return self.teachers[0] if self.teachers else None

    @property
    def teachers(self) -> tuple[str, ...]:
        """Directory or hub id of each teacher."""
        found = self.spec.teachers if isinstance(self.spec, DistillSpec) else ()
        return tuple(self.resolve_model(teacher.model) for teacher in found)

    @property
    def has_written_labels(self) -> bool:
        """Whether the teacher writes the completions that the student learns (seq_kd)."""
        return self.spec.has_written_labels

    def resolve_model(self, reference: str) -> str:
        """Registry reference -> its directory; `~` is expanded; a hub id stays as it is."""
        form = model_form(reference)
        if form == "registry":
            return self._registered(reference)
        return str(Path(reference).expanduser()) if form == "directory" else reference

    def _registered(self, reference: str) -> str:
        if reference not in self.models:
            raise UserError("MODEL_UNKNOWN", f"{reference} is not among the job's models: {sorted(self.models)}")
        return self.models[reference]


def distinct(spec: DistillSpec, models: Sequence[str]) -> tuple[int, ...]:
    """For each teacher of the spec the number of its model among the different ones, in their order.

    `models[i]` is where `spec.teachers[i]` lies; the same model in two precisions is two.
    """
    keys = [(model, teacher.dtype) for model, teacher in zip(models, spec.teachers, strict=True)]
    return tuple(list(dict.fromkeys(keys)).index(key) for key in keys)
