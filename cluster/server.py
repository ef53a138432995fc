"""The control plane's process: puts its parts together, serves until it is told to end, and ends gracefully.

`serve` is the foreground entry. Decides nothing about jobs: that is the reconciler's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import TextIO, cast

import grpc
import structlog
from athanor.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    cluster_service_pb2,
    cluster_service_pb2_grpc,
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.deployer import Deployer, Endpoint
from cluster.deployment_reconciler import DeploymentReconciler, Serving
from cluster.errors import StartUpError
from cluster.housekeeping import Housekeeping
from cluster.launcher import Launcher, RayLauncher
from cluster.log_lines import LogLines
from cluster.metrics import Metrics
from cluster.metrics import serving as serving_metrics
from cluster.orphans import Orphans
from cluster.reconciler import Reconciler
from cluster.replicas import Replicas
from cluster.security.audit import AuditLog
from cluster.security.limits import MAX_MESSAGE_BYTES
from cluster.security.policies import policies_of
from cluster.security.tls import check_exposure, server_credentials
from cluster.security.tokens import Tokens, ensure_first_token
from cluster.services.audit import AuditService
from cluster.services.deployments import DeploymentService
from cluster.services.info import ClusterService
from cluster.services.interceptor import Gate
from cluster.services.jobs import JobService
from cluster.services.measuring import Meter
from cluster.services.models import ModelService
from cluster.services.tokens import TokenService
from cluster.services.workers import WorkerService
from cluster.settings import EVERY_INTERFACE, Settings, unknown_variables
from cluster.store.store import Store
from cluster.wakeup import WakeUp

log = structlog.get_logger(__name__)

_OPTIONS = (
    # Two servers on one port must be an error, never a lottery.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # drivers ping every 10 s
    # A client that is gone without a word does not hold its watches open.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 5_000),  # of one connection
)
_FILES = tuple(
    file.DESCRIPTOR
    for file in (
        audit_service_pb2,
        cluster_service_pb2,
        deployment_service_pb2,
        job_service_pb2,
        model_service_pb2,
        token_service_pb2,
        worker_service_pb2,
    )
)
_SERVICE_NAMES = tuple(service.full_name for file in _FILES for service in file.services_by_name.values())


def configure_logging() -> None:
    """JSON lines on stderr, with whatever ids are bound at the moment."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, LogLines(sys.stderr))),
        cache_logger_on_first_use=False,
    )


def check_listen(listen: str) -> None:
    """Say in words people understand why an address cannot be listened on."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise StartUpError("INVALID_LISTEN", f"{listen!r} is no host:port; set ATHANOR_LISTEN, e.g. 127.0.0.1:50051")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise StartUpError("CANNOT_LISTEN", _why_not(listen, error)) from error


def check_advertise(settings: Settings) -> None:
    """Whoever listens on every interface has to say under which address drivers find it."""
    if settings.listen_host in EVERY_INTERFACE and not settings.advertise:
        words = f"nobody can reach {settings.listen}; set ATHANOR_ADVERTISE to the host:port that Ray's nodes can reach"
        raise StartUpError("NO_ADVERTISED_ADDRESS", words)


def _why_not(listen: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{listen} is in use; stop the other process or set ATHANOR_LISTEN"
    return f"cannot listen on {listen}: {error.strerror or error}; set ATHANOR_LISTEN"


@contextlib.asynccontextmanager
async def running_server(
    settings: Settings, launcher: Launcher | None = None, serving: Serving | None = None
) -> AsyncIterator[str]:
    """A whole control plane while the block lasts; yields its host:port. An error of its loops is raised at the end."""
    check_listen(settings.listen)
    check_advertise(settings)
    check_exposure(settings)
    _make_directories(settings)
    async with contextlib.AsyncExitStack() as stack:
        store = await asyncio.to_thread(partial(Store.open, settings.database_url, rules=settings.scheduling))
        stack.callback(store.close)
        wake_up = WakeUp()
        store.database.on_change = wake_up.ring
        tokens = Tokens(store)
        metrics = Metrics()
        server = grpc.aio.server(interceptors=(Meter(metrics), await _gate(settings, store, tokens)), options=_OPTIONS)
        address = _bind(server, settings)
        launcher = launcher or _ray_launcher(stack, settings)
        serving = serving or _deployer(stack, settings)
        replicas = _replicas(settings, store, address)
        stack.push_async_callback(replicas.leave)
        reconciler = Reconciler(settings, store, launcher, replicas)
        deployments = DeploymentReconciler(
            settings, store, serving, leads=lambda: replicas.leads, control_planes=lambda: replicas.addresses
        )
        deployments.metrics = metrics
        orphans = Orphans(settings, store, launcher, serving, leads=lambda: replicas.leads)
        tidying = Housekeeping(settings, store)
        _measure(stack, settings, metrics, store, reconciler)
        _add_services(server, settings, store, wake_up, reconciler)
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(TokenService(store, tokens), server)
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server(AuditService(store), server)
        await stack.enter_async_context(
            _background(
                *(reconciler.run(wake_up), deployments.run(wake_up), tidying.run(wake_up), orphans.run(wake_up)),
                replicas.run(wake_up),
            )
        )
        await stack.enter_async_context(_answering(server, settings, wake_up))
        log.info("server.started", address=address, store=settings.store_kind, storage=str(settings.storage))
        yield address
    log.info("server.stopped")


def _measure(
    stack: contextlib.AsyncExitStack, settings: Settings, metrics: Metrics, store: Store, reconciler: Reconciler
) -> None:
    """Let everybody who has something to count know the metrics, and show them where that was asked for."""
    store.database.on_move, store.database.on_write = metrics.moved, metrics.transaction
    reconciler.metrics = metrics
    metrics.watch_store(store.job_counts, store.now_us)
    metrics.watch_ray(lambda: reconciler.ray.reachable)
    if settings.metrics_listen:
        log.info("metrics.served", address=stack.enter_context(serving_metrics(metrics, settings.metrics_listen)))


def _make_directories(settings: Settings) -> None:
    try:
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("jobs", "models"):
            (settings.storage / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot write {error.filename}: {error.strerror}; see ATHANOR_HOME and ATHANOR_STORAGE"
        raise StartUpError("CANNOT_WRITE", message) from error


async def _gate(settings: Settings, store: Store, tokens: Tokens) -> Gate:
    """What stands before all handlers; with tokens there is one, at the latest now."""
    asks = settings.auth == "token"
    if asks:
        await asyncio.to_thread(ensure_first_token, store, settings.admin_token_path)
    return Gate(
        policies_of(_FILES),
        tokens if asks else None,
        AuditLog(store),
        calls_per_second=settings.calls_per_second,
        max_streams=settings.max_streams,
    )


def _bind(server: grpc.aio.Server, settings: Settings) -> str:
    credentials = server_credentials(settings)
    try:
        if credentials is not None:
            return f"{settings.listen_host}:{server.add_secure_port(settings.listen, credentials)}"
        return f"{settings.listen_host}:{server.add_insecure_port(settings.listen)}"
    except RuntimeError as error:
        message = f"{settings.listen} is in use; stop the other process or set ATHANOR_LISTEN"
        raise StartUpError("CANNOT_LISTEN", message) from error


def _replicas(settings: Settings, store: Store, address: str) -> Replicas:
    """Host and port name one process at a time, wherever its advertised address leads. A name has 64 characters."""
    host = socket.gethostname()
    name = f"{host[:24]}/{address[-16:]}/{hashlib.sha256(f'{host}/{address}'.encode()).hexdigest()[:8]}"
    return Replicas(store, name, settings.advertise or address, settings.replica_lease_s)


def _ray_launcher(stack: contextlib.AsyncExitStack, settings: Settings) -> RayLauncher:
    launcher = RayLauncher(settings)
    stack.push_async_callback(launcher.close)
    return launcher


def _deployer(stack: contextlib.AsyncExitStack, settings: Settings) -> Deployer:
    deployer = Deployer(
        settings.ray_dashboard_url,
        settings.token_file,
        Endpoint(settings.serve_host, settings.serve_port, settings.serve_grpc_port),
        storage=settings.storage,
    )
    stack.push_async_callback(deployer.aclose)
    return deployer


def _add_services(
    server: grpc.aio.Server, settings: Settings, store: Store, wake_up: WakeUp, reconciler: Reconciler
) -> None:
    job_service_pb2_grpc.add_JobServiceServicer_to_server(JobService(settings, store, wake_up), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(settings, store), server)
    deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(DeploymentService(settings, store), server)
    workers = WorkerService(settings, store, reconciler.replicas)
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(workers, server)
    info = ClusterService(settings, store, reconciler.launcher, reconciler.ray)
    cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(info, server)


@contextlib.asynccontextmanager
async def _answering(server: grpc.aio.Server, settings: Settings, wake_up: WakeUp) -> AsyncIterator[None]:
    """Started and healthy; at the end first NOT_SERVING and a pause, then streams end, then the calls in flight."""
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection([*_SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    await server.start()
    for name in ("", *_SERVICE_NAMES):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await servicer.enter_graceful_shutdown()
        await asyncio.sleep(settings.drain_s)
        wake_up.close()
        await server.stop(settings.shutdown_grace_s)


@contextlib.asynccontextmanager
async def _background(*loops: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """The loops run while the block lasts. One that fails by a mistake of ours ends the block and the process."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(loop) for loop in loops]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _serve_until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running_server(settings):
        await stop.wait()


def serve(settings: Settings) -> None:
    """Serve in the foreground until SIGTERM or SIGINT. Exit code 1 with one clear line when it cannot start."""
    configure_logging()
    for name, hint in unknown_variables(os.environ).items():
        log.warning("settings.unknown_variable", name=name, words=f"it says nothing to a control plane{hint}")
    try:
        asyncio.run(_serve_until_signal(settings))
    except StartUpError as error:
        sys.stderr.write(f"error: [{error.reason}] {error}\n")
        raise SystemExit(1) from error
