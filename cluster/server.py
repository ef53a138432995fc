"""The control plane's process: puts its parts together, serves until it is told to end, and ends gracefully.

`serve` is the foreground entry. Decides nothing about jobs: that is the reconciler's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import sys
from collections.abc import AsyncIterator

import grpc
import structlog
from athanor.v1 import cluster_service_pb2, cluster_service_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.errors import StartUpError
from cluster.services.info import ClusterService, RayStatus
from cluster.services.interceptor import ErrorInterceptor
from cluster.settings import Settings

log = structlog.get_logger(__name__)

_OPTIONS = (
    # Two servers on one port must be an error, never a lottery.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def check_listen(listen: str) -> None:
    """Say in words people understand why an address cannot be listened on."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit():
        raise StartUpError("INVALID_LISTEN", f"{listen!r} is no host:port; set ATHANOR_LISTEN, e.g. 127.0.0.1:50051")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise StartUpError("CANNOT_LISTEN", _why_not(listen, error)) from error


def _why_not(listen: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{listen} is in use; stop the other process or set ATHANOR_LISTEN"
    return f"cannot listen on {listen}: {error.strerror or error}; set ATHANOR_LISTEN"


@contextlib.asynccontextmanager
async def running_server(settings: Settings) -> AsyncIterator[str]:
    """A whole control plane while the block lasts; yields its host:port."""
    check_listen(settings.listen)
    server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=_OPTIONS)
    cluster_service_pb2_grpc.add_ClusterServiceServicer_to_server(ClusterService(settings, RayStatus()), server)
    names = [cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"].full_name]
    health_servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = server.add_insecure_port(settings.listen)
    await server.start()
    for name in ["", *names]:
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    address = f"{settings.listen_host}:{port}"
    log.info("server.started", address=address)
    try:
        yield address
    finally:
        await health_servicer.enter_graceful_shutdown()
        await server.stop(settings.shutdown_grace_s)
        log.info("server.stopped")


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
    try:
        asyncio.run(_serve_until_signal(settings))
    except StartUpError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from error
