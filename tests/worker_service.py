"""The side of the control plane that drivers talk to, as a fake that notes what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import grpc
from athanor.v1 import worker_service_pb2, worker_service_pb2_grpc
from grpc_status import rpc_status

from cluster.errors import PreconditionFailed
from cluster.services.status import rich_status


class ControlPlane(worker_service_pb2_grpc.WorkerServiceServicer):
    """Answers with `directive`, or with LEASE_LOST for another token than `token`."""

    def __init__(self) -> None:
        self.told: SimpleQueue[object] = SimpleQueue()
        self.directive = worker_service_pb2.DIRECTIVE_CONTINUE
        self.token = "secret"

    def _take(self, request, context):
        if request.attempt.lease_token != self.token:
            error = PreconditionFailed("LEASE_LOST", "end at once")
            context.abort_with_status(rpc_status.to_status(rich_status(error, "1")))
        self.told.put(request)

    def Heartbeat(self, request, context):
        self._take(request, context)
        return worker_service_pb2.HeartbeatResponse(directive=self.directive)

    def ReportProgress(self, request, context):
        self._take(request, context)
        return worker_service_pb2.ReportProgressResponse(directive=self.directive)

    def ReportTerminal(self, request, context):
        self._take(request, context)
        return worker_service_pb2.ReportTerminalResponse()


@contextmanager
def serving(control_plane: ControlPlane, port: int = 0) -> Iterator[int]:
    """The port on which it listens; a free one unless one is given."""
    server = grpc.server(ThreadPoolExecutor(2))
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(control_plane, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    yield port
    server.stop(None).wait()
