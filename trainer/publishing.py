"""A finished model at its published place: the directory that anyone can load, and what it was made of beside it.

What a registry knows of it is the control plane's affair.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import atomic
from trainer.job import JobContext
from trainer.storage import writing

MANIFEST = "athanor.json"


def publish_model(ctx: JobContext, model_dir: Path, target_dir: Path, extra: Mapping[str, Any]) -> str:
    """Copies a finished model to its published place with its lineage; gives the sha256 of `athanor.json`.

    `extra`: what the caller knows of the lineage besides spec and files (name, teacher versions, data, metrics).
    """
    temporary = target_dir.with_name(f".{target_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(target_dir, temporary):
        return _publish(ctx, model_dir, temporary, target_dir, extra)


def _publish(ctx: JobContext, model_dir: Path, temporary: Path, target_dir: Path, extra: Mapping[str, Any]) -> str:
    shutil.copytree(model_dir, temporary)
    files = sorted(path for path in temporary.rglob("*") if path.is_file() and path.name != MANIFEST)
    lineage = {
        "job": ctx.uid,
        "kind": ctx.kind,
        "spec": ctx.spec.model_dump(mode="json", by_alias=True),
        **extra,
        "files": {str(path.relative_to(temporary)): atomic.sha256_file(path) for path in files},
    }
    atomic.write_json(temporary / MANIFEST, lineage)
    digest = atomic.sha256_file(temporary / MANIFEST)
    atomic.replace_directory(temporary, target_dir)
    return digest
