"""What applications are told, as the control plane writes it into Serve's configuration: their `args`. Knows no Ray.

Also which limits of an engine people may set, so that a wrong one is refused before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.model_dir import ModelDirectory, verify

EngineName = Literal["transformers", "vllm"]
_MOST = 2**31 - 1
_COUNT = (1, _MOST)
ENGINE_LIMITS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "transformers": {
        "max_model_len": _COUNT,
        "kv_tokens": _COUNT,
        "prefix_tokens": (0, _MOST),
        "long_share": (0, 0.95),
        "max_rows": _COUNT,
        "prefill_tokens": _COUNT,
        "max_waiting": _COUNT,
        "max_batch_tokens": _COUNT,
    },
    "vllm": {
        "max_model_len": _COUNT,
        "max_num_seqs": _COUNT,
        "max_num_batched_tokens": _COUNT,
        "gpu_memory_utilization": (0.01, 1.0),
    },
}
"""Of each engine, by its own names: the least and the most."""
FRACTIONS = ("gpu_memory_utilization", "long_share")


def wrong_engine(name: str, limits: Mapping[str, float]) -> tuple[str, str] | None:
    """The field (`name`, or `limits[...]`) and what is wrong with it; None where an engine can be had so."""
    if name not in ENGINE_LIMITS:
        return "name", f"{name[:80]!r} is no engine; there are {' and '.join(ENGINE_LIMITS)}"
    known = ENGINE_LIMITS[name]
    for limit, value in limits.items():
        field = f"limits[{limit[:80]}]"
        if limit not in known:
            return field, f"the engine {name} knows no such limit; it knows {', '.join(known)}"
        least, most = known[limit]
        if not least <= value <= most or (limit not in FRACTIONS and value != int(value)):
            kind = "number" if limit in FRACTIONS else "whole number"
            return field, f"{value:g} is no {kind} from {least:g} to {most:g}"
    return None


class EngineOptions(BaseModel):
    """By what a model is run, and what it may use; `wrong_engine` says what may be named."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: EngineName = "transformers"
    limits: Mapping[str, float] = {}


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
    engine: EngineOptions = EngineOptions()

    def verified(self) -> ModelDirectory:
        return verify(self.model_path, self.manifest_sha256)


class JudgeOptions(ModelOptions):
    """Of the teacher; `revision` is the canary's."""

    canary_app: str
    token: Annotated[str, Field(min_length=1, repr=False)]
    task_data: Path | None = None
    """Labelled examples that both revisions are asked."""
    task_sha256: str | None = None
    """Of that file, where the control plane could read it."""


class GatewayOptions(BaseModel):
    """Of which installation it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    storage: Path
