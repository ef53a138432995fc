"""What applications are told, as the control plane writes it into Serve's configuration: their `args`. Knows no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from serving.model_dir import ModelDirectory, verify


class ModelOptions(BaseModel):
    """Which model version an application loads."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: Annotated[str, Field(min_length=1)]
    """Of the deployment."""
    revision: Annotated[int, Field(ge=1)]
    model_path: Path
    model_name: Annotated[str, Field(min_length=1)]
    version: int
    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the model's `athanor.json`, as the registry knows it; then no other is served."""

    def verified(self) -> ModelDirectory:
        return verify(self.model_path, self.manifest_sha256)


class JudgeOptions(ModelOptions):
    """Of the teacher; `revision` is the canary's."""

    canary_app: str
    token: Annotated[str, Field(min_length=1, repr=False)]


class GatewayOptions(BaseModel):
    """Of which installation it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage: Path
