"""A control plane over a real Ray Serve, with models to deploy, and people who keep asking."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest
from athanor.v1 import deployment_service_pb2 as pb

from cluster.client import AthanorClient
from cluster.launcher import authorization
from cluster.ray_head import HOST, RayHead, free_ports
from cluster.server import running_server
from cluster.settings import Settings

QUESTION = [{"role": "user", "content": "Where is my card?"}]
DEADLINE_S = 150.0


def wait(observe: Callable[[], object], deadline_s: float = DEADLINE_S, words: Callable[[], object] = str) -> None:
    """Until `observe` is true; `words` are in the failure."""
    deadline = time.monotonic() + deadline_s
    while not observe():
        assert time.monotonic() < deadline, f"not in time; {words()}"
        time.sleep(0.2)


@dataclass
class Installation:
    """What a test may use."""

    client: AthanorClient
    settings: Settings
    head: RayHead

    @property
    def url(self) -> str:
        return self.settings.serve_url

    @property
    def token(self) -> str:
        """The first admin token."""
        return self.settings.admin_token_path.read_text().strip()

    @property
    def authorization(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def openai(self, deployment: str = "", **options: object) -> openai.OpenAI:
        path = f"/{deployment}/v1" if deployment else "/v1"
        return openai.OpenAI(base_url=f"{self.url}{path}", **{"api_key": self.token, "max_retries": 0, **options})

    def publish(self, name: str, directory: Path) -> str:
        """A new version, as `name@version`."""
        source = self.settings.storage / "incoming" / name
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(directory, source)
        made = self.client.create_model_version(name, str(source))
        return f"{made.name}@{made.version}"

    def deploy(self, name: str, model: str, **fields: object) -> pb.Deployment:
        """And wait until it answers."""
        self.client.create_deployment(pb.Deployment(name=name, model=model, cpus_per_replica=0.2, **fields))
        made = self.client.wait_deployment(name, timeout_s=DEADLINE_S)
        assert made.state == pb.DEPLOYMENT_STATE_READY, made.message
        return made

    def take_down(self, name: str) -> None:
        self.client.delete_deployment(name)
        wait(lambda: name not in {each.name for each in self.client.list_deployments()})

    def revision(self, name: str, number: int) -> pb.Revision:
        return next(each for each in self.client.get_deployment(name).revisions if each.number == number)

    def until_phase(self, name: str, number: int, phase: str) -> pb.Revision:
        wanted = pb.RevisionPhase.Value(f"REVISION_PHASE_{phase}")
        wait(
            lambda: self.revision(name, number).phase == wanted, words=lambda: (self.client.get_deployment(name), phase)
        )
        return self.revision(name, number)

    def reasons(self, name: str) -> list[str]:
        """Of all decisions, oldest first."""
        return [each.reason for each in self.client.list_deployment_events(name)][::-1]

    def replica_pids(self, application: str) -> list[int]:
        reply = httpx.get(
            f"{self.settings.ray_dashboard_url}/api/serve/applications/",
            headers=authorization(self.settings.token_file),
            trust_env=False,
            timeout=30,
        )
        deployments = reply.json()["applications"][application]["deployments"].values()
        return [each["pid"] for deployment in deployments for each in deployment["replicas"] if each.get("pid")]

    def kill_replica(self, application: str) -> int:
        """Of the process that is gone now."""
        pid = self.replica_pids(application)[0]
        os.kill(pid, signal.SIGKILL)
        return pid


@dataclass
class Crowd:
    """People who ask one deployment again and again, half of them for a stream."""

    installation: Installation
    deployment: str
    answers: list[tuple[str, str]] = field(default_factory=list)
    """Version and text of each answer."""
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask_until_stopped(self, number: int) -> None:
        client = self.installation.openai(timeout=120)
        while not self._stop.is_set():
            try:
                self.answers.append(self._ask(client, number, is_stream=number % 2 == 0))
            except openai.OpenAIError as error:
                self.failures.append(repr(error))

    def _ask(self, client: openai.OpenAI, number: int, *, is_stream: bool) -> tuple[str, str]:
        asked = client.chat.completions.with_raw_response.create(
            model=self.deployment,
            messages=QUESTION,
            max_tokens=16,
            temperature=0,
            stream=is_stream,
            user=f"person-{number}",
        )
        answer, version = asked.parse(), asked.headers["x-athanor-model"]
        if not is_stream:
            return version, answer.choices[0].message.content
        return version, "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def crowd(installation: Installation, deployment: str, num_people: int = 4) -> Iterator[Crowd]:
    """While the block lasts; at its end no answer may have failed, and there must have been some."""
    people = Crowd(installation, deployment)
    with ThreadPoolExecutor(num_people) as pool:
        asking = [pool.submit(people.ask_until_stopped, number) for number in range(num_people)]
        try:
            wait(lambda: len(people.answers) >= num_people or people.failures)
            yield people
            before = len(people.answers)
            wait(lambda: len(people.answers) > before + num_people or people.failures)
        finally:
            people.stop()
    for each in asking:
        each.result()
    assert people.failures == []


@contextmanager
def installed(head: RayHead, home: Path) -> Iterator[Installation]:
    """A control plane in a thread, while the block lasts; at its end nothing of it is on Serve."""
    port, grpc_port = free_ports(2)
    settings = Settings(
        home=home,
        listen=f"{HOST}:0",
        ray_dashboard_url=head.dashboard_url,
        ray_token_path=Path(head.token_path),
        ray_auth_mode="token",
        serve_host=HOST,
        serve_port=port,
        serve_grpc_port=grpc_port,
        reconcile_interval_s=0.3,
        revision_drain_s=1.0,
    )
    loop, stop, address = asyncio.new_event_loop(), asyncio.Event(), Future[str]()

    async def live() -> None:
        async with running_server(settings) as at:
            address.set_result(at)
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(live()))
    thread.start()
    try:
        with AthanorClient(address.result(60), token=settings.admin_token_path.read_text().strip()) as client:
            installation = Installation(client, settings, head)
            yield installation
            for each in client.list_deployments():
                installation.take_down(each.name)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


@dataclass(frozen=True)
class Models:
    """References of what is published."""

    teacher: str
    good: str
    """Says what its teacher says."""
    better: str
    """Almost."""
    garbage: str
    """Other random weights: it answers quickly, and says something else."""


@pytest.fixture(scope="session")
def installation(ray_cluster: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """One for all tests of a session."""
    with installed(ray_cluster, tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(scope="session")
def models(installation: Installation, chat_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(
        teacher=installation.publish("teacher", chat_model_dir),
        good=installation.publish("student", chat_model_dir),
        better=installation.publish("student", _altered(chat_model_dir, tmp_path_factory.mktemp("better"), 0.001)),
        garbage=installation.publish("student", _altered(chat_model_dir, tmp_path_factory.mktemp("garbage"), None)),
    )


def gate(models: Models) -> pb.CanaryGate:
    """Of a busy test machine: times count little."""
    return pb.CanaryGate(teacher=models.teacher, mirror_share=1.0, max_latency_ratio=20.0)


def _altered(source: Path, target: Path, noise: float | None) -> Path:
    """The same model with some noise in its weights, or with nothing but noise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(source, target, dirs_exist_ok=True)
    torch.manual_seed(17)
    if noise is None:
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(source))
    else:
        model = LlamaForCausalLM.from_pretrained(source)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
    model.save_pretrained(target)
    return target
