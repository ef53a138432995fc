"""The Ray Serve application of one deployment: the only module here that knows Ray.

`serving.app:build` is the import path in Serve's configuration. The replica loads the model itself; what builds the
application loads no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from serving.model_dir import verify

if TYPE_CHECKING:
    from starlette.types import ASGIApp

# More than the engine lets wait, so that it is the engine that refuses, in OpenAI's shape.
MAX_ONGOING_REQUESTS = 512


class ReplicaOptions(BaseModel):
    """The `args` of the application, as the control plane writes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: Annotated[str, Field(min_length=1)]
    model_path: Path
    model_name: Annotated[str, Field(min_length=1)]
    version: int
    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of the model's `athanor.json`, as the registry knows it; then no other is served."""
    num_replicas: Annotated[int, Field(ge=1, le=64)] = 1
    cpus_per_replica: Annotated[float, Field(ge=0)] = 1.0
    gpus_per_replica: Annotated[float, Field(ge=0)] = 0.0


class Replica:
    """One copy of the model behind the endpoint."""

    def __init__(self, options: ReplicaOptions) -> None:
        from serving.loading import load  # torch: only where the model is

        directory = verify(options.model_path, options.manifest_sha256)
        self._options = options
        self._directory = directory
        self._model = load(directory)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Asked for by Serve, once the model is loaded."""
        from serving.openai_api import ModelCard, build_api

        options, directory = self._options, self._directory
        card = ModelCard(options.name, options.model_name, options.version, directory.created, directory.lineage)
        return build_api(card, self._model)


def build(args: dict[str, Any]) -> serve.Application:
    """The application of these `args`: in Ray's dashboard the deployment in it bears the model's name."""
    options = ReplicaOptions.model_validate(args)
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=options.model_name,
        num_replicas=options.num_replicas,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": options.cpus_per_replica, "num_gpus": options.gpus_per_replica},
    )
    return deployment.bind(options)
