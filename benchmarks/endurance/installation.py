"""An installation that lives for one measurement: Ray head, control plane, models to deploy, and a hand that kills.

What is done to it, and when, is the benchmark's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from athanor.v1 import deployment_service_pb2 as pb

from benchmarks.inference import workload
from cluster.client import AthanorClient
from cluster.launcher import authorization
from cluster.process import end
from cluster.ray_head import HOST, RayHead, free_ports, start_head
from cluster.serve_plan import GATEWAY, application_name
from cluster.server import configure_logging, running_server
from cluster.settings import Settings

NAME = "bot"
_MIB = 1024 * 1024
_NUM_CPUS = 8  # logical


@dataclass(frozen=True)
class Versions:
    """References of the models."""

    teacher: str
    first: str
    second: str
    garbage: str
    third: str


@dataclass
class Installation:
    """What the benchmark uses."""

    client: AthanorClient
    settings: Settings

    def publish(self, name: str, directory: Path) -> str:
        made = self.client.create_model_version(name, str(directory))
        return f"{made.name}@{made.version}"

    def live(self) -> pb.Revision | None:
        found = [each for each in self.deployment().revisions if each.phase == pb.REVISION_PHASE_LIVE]
        return found[0] if found else None

    def deployment(self) -> pb.Deployment:
        return self.client.get_deployment(NAME)

    def reasons(self) -> list[str]:
        """Of all decisions, newest first."""
        return [each.reason for each in self.client.list_deployment_events(NAME)]

    def kill_replica(self) -> str:
        """SIGKILL to one of those that answer; the name of its application."""
        live = self.live()
        application = application_name(NAME, live.number) if live else ""
        pids = self._pids().get(application, [])
        if pids:
            os.kill(pids[0], signal.SIGKILL)
        return application if pids else ""

    def memory_mib(self) -> dict[str, list[float]]:
        """Resident memory of every replica, by application."""
        return {name: [_resident_mib(pid) for pid in pids] for name, pids in self._pids().items()}

    def _pids(self) -> dict[str, list[int]]:
        reply = httpx.get(
            f"{self.settings.ray_dashboard_url}/api/serve/applications/",
            headers=authorization(self.settings.token_file),
            trust_env=False,
            timeout=30,
        )
        return {
            name: [
                replica["pid"]
                for deployment in application["deployments"].values()
                for replica in deployment["replicas"]
                if replica.get("pid") and replica["state"] == "RUNNING"
            ]
            for name, application in reply.json()["applications"].items()
        }


@contextlib.contextmanager
def installed(root: Path) -> Iterator[Installation]:
    """All of it, while the block lasts; nothing of it is left behind."""
    token = root / "token"
    head = start_head(root / "ray", num_cpus=_NUM_CPUS, log_path=root / "ray.log", token_path=token)
    try:
        os.environ.update(head.client_env())
        with _control_plane(_settings(root, head)) as installation:
            yield installation
    finally:
        end(head.process)


def publish_all(installation: Installation, root: Path) -> Versions:
    """One model that speaks four times, and once another that says something else."""
    good, garbage = root / "good", root / "garbage"
    workload.build(good)
    _other_weights(good, garbage)
    teacher = installation.publish("teacher", good)
    first, second = (installation.publish("student", good) for _ in range(2))
    worse, third = installation.publish("student", garbage), installation.publish("student", good)
    return Versions(teacher, first, second, worse, third)


def of_gateway(memory_mib: dict[str, list[float]]) -> float:
    return sum(memory_mib.get(GATEWAY, []))


def _settings(root: Path, head: RayHead) -> Settings:
    (port,) = free_ports(1)
    return Settings(
        home=root / "home",
        listen=f"{HOST}:0",
        auth="none",
        ray_dashboard_url=head.dashboard_url,
        ray_token_path=Path(head.token_path),
        ray_auth_mode="token",
        serve_host=HOST,
        serve_port=port,
    )


@contextlib.contextmanager
def _control_plane(settings: Settings) -> Iterator[Installation]:
    configure_logging()
    loop, stop, address = asyncio.new_event_loop(), asyncio.Event(), Future[str]()

    async def live() -> None:
        async with running_server(settings) as at:
            address.set_result(at)
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(live()))
    thread.start()
    try:
        with AthanorClient(address.result(60)) as client:
            yield Installation(client, settings)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


def _other_weights(source: Path, target: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(source, target)
    torch.manual_seed(99)
    LlamaForCausalLM(LlamaConfig.from_pretrained(source)).save_pretrained(target)


def _resident_mib(pid: int) -> float:
    with contextlib.suppress(psutil.Error):
        return float(psutil.Process(pid).memory_info().rss / _MIB)
    return 0.0
