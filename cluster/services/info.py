"""ClusterService: what is running, and where."""

from __future__ import annotations

import time

import grpc
from athanor.v1 import cluster_service_pb2, cluster_service_pb2_grpc

from cluster import __version__
from cluster.launcher import Launcher
from cluster.reconciler import RayStatus
from cluster.settings import Settings
from cluster.store.store import Store


class ClusterService(cluster_service_pb2_grpc.ClusterServiceServicer):
    """Answers from the settings and from what the reconciler last saw."""

    def __init__(self, settings: Settings, store: Store, launcher: Launcher, ray: RayStatus) -> None:
        self._settings = settings
        self._store = store
        self._launcher = launcher
        self._ray = ray
        self._start_time_s = time.time()

    async def GetServerInfo(
        self, request: cluster_service_pb2.GetServerInfoRequest, context: grpc.ServicerContext
    ) -> cluster_service_pb2.GetServerInfoResponse:
        del request, context
        response = cluster_service_pb2.GetServerInfoResponse(
            version=__version__,
            api_versions=["athanor.v1"],
            ray_dashboard_url=self._settings.ray_dashboard_url,
            ray_reachable=self._ray.reachable,
            ray_version=self._ray.version,
            serve_url=self._settings.serve_url,
            storage_path=str(self._settings.storage),
            store=self._settings.store_kind,
        )
        response.start_time.FromNanoseconds(int(self._start_time_s * 1e9))
        return response
