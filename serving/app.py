"""The Ray Serve applications: gateway, replicas of a revision, judge of a canary. The only module here that knows Ray.

`serving.app:build`, `build_gateway` and `build_judge` are import paths in Serve's configuration. Models are loaded by
the replicas themselves; what builds an application loads no torch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serving.backend import BackendRequest, Chunk, Head, respond
from serving.errors import BackendFailed, EngineFailed, ServingError, Unavailable
from serving.options import GatewayOptions, JudgeOptions, ModelOptions
from serving.routes import RouteTable

if TYPE_CHECKING:
    from prometheus_client import Metric
    from starlette.types import ASGIApp

    from serving.engine import Scored
    from serving.loading import LoadedModel
    from serving.mirroring import MirroredPair
    from serving.reading import Labels
    from serving.task_data import Example

# More than the engine lets wait, so that it is the engine that refuses, in OpenAI's shape.
MAX_ONGOING_REQUESTS = 512
_GATEWAY_ONGOING = 4096
_JUDGE_ONGOING = 512
"""More than all gateways bring at once: it compares only a few at a time, and what users met waits for none of them."""
_LAST_REQUESTS_S = 600.0
"""How long a replica that goes may take over the requests that it has: as long as one may take at all."""
_HEALTH_PERIOD_S = 5.0
_REPLICA, _GATEWAY, _JUDGE = "Replica", "Gateway", "Judge"
logger = logging.getLogger(__name__)


class Replica:
    """One copy of a model version. Its API is an ASGI application that is asked through a handle, not over HTTP."""

    def __init__(self, options: ModelOptions) -> None:
        from serving.loading import load  # torch: only where the model is
        from serving.openai_api import ModelCard, build_api
        from serving.reading import Reading
        from serving.replica_metrics import ReplicaMetrics

        _log_beside_serve()
        directory = options.verified()
        model = f"{options.model_name}@{options.version}"
        self._metrics = ReplicaMetrics(options.name, model, serve.get_replica_context().replica_tag)
        self._model = load(directory, observer=self._metrics, engine=options.engine)
        self._reading = Reading(self._model)
        card = ModelCard(options.name, options.model_name, options.version, directory.created, directory.lineage)
        self._api = build_api(card, self._model)

    async def serve(self, request: BackendRequest) -> AsyncGenerator[Head | Chunk]:
        """A Head, then Chunks."""
        async for item in respond(self._api, request):
            yield item

    def check_health(self) -> None:
        """Asked by Serve, which puts another replica in the place of one that raises."""
        if not self._model.is_healthy:
            raise EngineFailed("the engine has ended, or breaks over every request")

    async def figures(self) -> list[Metric]:
        if self._model.engine is not None:
            self._metrics.loaded(self._model.engine.load)
        return self._metrics.figures()

    async def prompt_ids(self, request: BackendRequest) -> tuple[int, ...]:
        return await self._reading.prompt_ids(request)

    async def score(self, token_ids: Sequence[int], start: int, top_k: int) -> Scored:
        return await self._reading.score(token_ids, start=start, top_k=top_k)

    async def labels(self, request: BackendRequest) -> Labels:
        return await self._reading.labels(request)

    async def answer(self, example: Example) -> str:
        return await self._reading.answer(example)

    def __del__(self) -> None:
        with suppress(AttributeError):
            _close(self._model)


class ServeBackends:
    """The way to the replicas of each revision, as handles of Serve."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle[Any]] = {}

    async def call(self, app: str, request: BackendRequest) -> AsyncGenerator[Head | Chunk]:
        """BackendFailed where the replica died, broke, or is not there."""
        items = self._handle(app).options(stream=True, method_name="serve").remote(request)
        is_complete = False
        try:
            async for item in items:
                yield item
            is_complete = True
        except (RayError, RayServeException) as error:
            is_complete = True
            raise BackendFailed(_gist(error)) from error
        finally:
            if not is_complete:
                items.cancel()

    async def figures(self, app: str) -> Sequence[Sequence[Metric]]:
        try:
            return [*await self._handle(app).broadcast("figures").results_async()]
        except (RayError, RayServeException):
            return []

    async def ask(self, app: str, method: str, *args: object, name: str = _REPLICA) -> Any:
        """One method's answer, from any replica of `app`; it waits for one as long as there is none.

        A ServingError that the replica raised comes as what it is; Unavailable where Serve has nobody to ask, and
        BackendFailed where the replica died or broke. Cancelling it ends the work there.
        """
        response = self._handle(app, name).options(method_name=method).remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            with suppress(RayError, RayServeException):
                response.cancel()
            raise
        except RayServeException as error:
            raise Unavailable(_gist(error)) from error
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else None
            raise (cause if isinstance(cause, ServingError) else BackendFailed(_gist(error))) from error

    async def ask_judge(self, app: str, method: str, *args: object) -> object:
        return await self.ask(app, method, *args, name=_JUDGE)

    def forget(self, table: RouteTable) -> None:
        """Handles of applications that are gone listen to nothing any more."""
        living = {backend.app for route in table.routes for backend in route.backends}
        living |= {route.judge_app for route in table.routes if route.judge_app}
        for app in self._handles.keys() - living:
            del self._handles[app]

    def _handle(self, app: str, name: str = _REPLICA) -> DeploymentHandle[Any]:
        if app not in self._handles:
            self._handles[app] = serve.get_deployment_handle(name, app, _check_exists=False)
        return self._handles[app]


class Gateway:
    """The one way in. Its `user_config` is the table of routes."""

    def __init__(self, options: GatewayOptions) -> None:
        del options
        _log_beside_serve()
        from serving.auth import Callers, CurrentControlPlanes
        from serving.gateway_grpc import GrpcGateway
        from serving.gateway_http import Entrance
        from serving.judges import Judges
        from serving.live_outcomes import LiveOutcomes
        from serving.mirroring import Mirroring

        self._backends = ServeBackends()
        self._directory = CurrentControlPlanes()
        judges = Judges(self._backends.ask_judge, lambda: self._entrance.table)
        mirroring, live = Mirroring(self._backends, judges.observe), LiveOutcomes(judges.note_live)
        self._entrance = Entrance(self._backends, Callers(self._directory), mirroring=mirroring, live=live)
        self._grpc = GrpcGateway(self._entrance)

    async def reconfigure(self, table: dict[str, Any]) -> None:
        """Called by Serve with each new table."""
        self._entrance.table = RouteTable.model_validate(table)
        self._backends.forget(self._entrance.table)
        await self._directory.tell(self._entrance.table)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        from serving.gateway_http import build_gateway

        return build_gateway(self._entrance)

    # What follows is called by Serve's gRPC proxy, under the names of the methods.
    async def Generate(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any]:
        async for response in self._grpc.generate(request, grpc_context):
            yield response

    async def Classify(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.classify(request, grpc_context)

    async def Embed(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.embed(request, grpc_context)

    async def Check(self, request: Any, grpc_context: Any) -> Any:
        return await self._grpc.check(request, grpc_context)

    async def Watch(self, request: Any, grpc_context: Any) -> AsyncGenerator[Any]:
        async for response in self._grpc.watch(request, grpc_context):
            yield response


class RemoteStudent:
    """A revision behind its application, as the judge asks it."""

    def __init__(self, backends: ServeBackends, app: str) -> None:
        self._backends = backends
        self._app = app

    async def prompt_ids(self, request: BackendRequest) -> tuple[int, ...]:
        found: tuple[int, ...] = await self._backends.ask(self._app, "prompt_ids", request)
        return found

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        found: Scored = await self._backends.ask(self._app, "score", token_ids, start, top_k)
        return found

    async def labels(self, request: BackendRequest) -> Labels:
        found: Labels = await self._backends.ask(self._app, "labels", request)
        return found

    async def answer(self, example: Example) -> str:
        return str(await self._backends.ask(self._app, "answer", example))


class JudgeActor:
    """The judge of one canary, with the teacher in it."""

    def __init__(self, options: JudgeOptions) -> None:
        from serving.judge import Judge
        from serving.loading import load
        from serving.reading import Reading
        from serving.reporting import Canary, Reporter
        from serving.task_data import read_task_data

        _log_beside_serve()
        self._options = options
        data = read_task_data(options.task_data, options.task_sha256) if options.task_data else None
        self._examples = data.shuffled(options.token) if data else ()
        self._examining: asyncio.Task[None] | None = None
        self._model = load(options.verified())
        self._backends = ServeBackends()
        self._judge = Judge(Reading(self._model), self._revision, options.canary_app)
        self._reporter = Reporter(Canary(options.name, options.revision, options.token))

    def _revision(self, app: str) -> RemoteStudent:
        return RemoteStudent(self._backends, app)

    async def reconfigure(self, told: dict[str, Any]) -> None:
        """Where control planes are; once the canary is up, also beside whom it is examined."""
        from serving.reporting import ControlPlanes
        from serving.task_pass import examine

        stable_app = told.pop("stable_app", None)
        addresses = tuple(told.pop("control_planes", ()))
        self._reporter.tell(ControlPlanes(addresses, **told))
        if stable_app is not None and self._examples and self._examining is None:
            both = self._revision(stable_app), self._revision(self._options.canary_app)
            self._examining = asyncio.ensure_future(examine(self._examples, *both, self._reporter.told))
            self._examining.add_done_callback(_log_end)

    async def note_live(self, failed: Sequence[bool]) -> None:
        """Of each request of the canary's own users, whether it failed."""
        from serving.judge import Finding

        for each in failed:
            self._reporter.add(Finding(kind="LIVE", canary_failed=each))

    async def observe(self, pair: MirroredPair) -> None:
        if self._reporter.is_over:
            return
        finding = await self._judge.compare(pair)
        if finding is not None:
            self._reporter.add(finding)


def build(args: dict[str, Any]) -> serve.Application:
    """The replicas of one revision."""
    return serve.deployment(
        Replica,
        name=_REPLICA,
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=_LAST_REQUESTS_S,
        health_check_period_s=_HEALTH_PERIOD_S,
    ).bind(ModelOptions.model_validate(args))


def build_gateway(args: dict[str, Any]) -> serve.Application:
    """The gateway before all revisions. It waits more than it computes, so it reserves no CPU."""
    return serve.deployment(
        serve.ingress()(Gateway),
        name=_GATEWAY,
        max_ongoing_requests=_GATEWAY_ONGOING,
        graceful_shutdown_timeout_s=_LAST_REQUESTS_S,
        ray_actor_options={"num_cpus": 0},
    ).bind(GatewayOptions.model_validate(args))


def build_judge(args: dict[str, Any]) -> serve.Application:
    """The judge of one canary."""
    return serve.deployment(JudgeActor, name=_JUDGE, max_ongoing_requests=_JUDGE_ONGOING).bind(
        JudgeOptions.model_validate(args)
    )


def _log_beside_serve() -> None:
    """Lines of ours, those with request ids among them, go to the files that Serve keeps for this replica."""
    ours = logging.getLogger("serving")
    ours.handlers = [*logging.getLogger("ray.serve").handlers]
    ours.setLevel(logging.INFO)
    ours.propagate = False


def _log_end(examining: asyncio.Task[None]) -> None:
    if not examining.cancelled() and (error := examining.exception()) is not None:
        logger.error("the labelled examples were not asked to their end", exc_info=error)


def _close(model: LoadedModel) -> None:
    for engine in (model.engine, model.pooling):
        if engine is not None:
            engine.close()


def _gist(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:300] if str(error).strip() else type(error).__name__
