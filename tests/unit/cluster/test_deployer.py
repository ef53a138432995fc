"""The deployer against a Ray Serve that is played by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cluster.deployer import Deployer, DeploymentStatus
from cluster.errors import RayRefused, RayUnreachable
from cluster.store.records import DeploymentState, StoredDeployment

STORAGE = Path("/storage")
BOT = StoredDeployment(
    name="support-bot",
    model="support-student@champion",
    resolved_model="support-student@3",
    path="/storage/models/support-student/support-bot-7k2m9qxa",
    num_replicas=2,
    cpus_per_replica=1.0,
    gpus_per_replica=0.0,
    state=DeploymentState.PENDING,
    message="",
    create_time_us=0,
    update_time_us=0,
)
FOREIGN = {"name": "translator", "import_path": "shop.translate:app", "route_prefix": "/translate"}
TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:support-bot:support-student() (pid=77, ip=10.0.0.1)
  File "serving/model_dir.py", line 41, in verify
    raise ModelDirectoryError(f"there is no model directory {path}")
serving.errors.ModelDirectoryError: there is no model directory /storage/gone
"""


class FakeServe:
    """Serve's REST API as Ray 2.60 answers it: keeps the configuration, and shows applications as it is told to."""

    def __init__(self) -> None:
        self.started = False
        self.applications: dict[str, dict] = {}
        self.http_options: dict | None = None
        self.proxy = "HEALTHY"
        self.requests: list[httpx.Request] = []

    @property
    def configurations(self) -> list[dict]:
        return [json.loads(request.content) for request in self.requests if request.method == "PUT"]

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path != "/api/serve/applications/":
            return httpx.Response(404)
        if request.method == "PUT":
            self._configure(json.loads(request.content))
            return httpx.Response(200)
        return httpx.Response(200, json=self._details())

    def show(self, name: str, status: str, message: str = "", deployment_message: str = "") -> None:
        application = self.applications[name]
        application |= {"status": status, "message": message}
        application["deployments"] = {"model": {"message": deployment_message}}

    def _configure(self, config: dict) -> None:
        if not self.started:
            self.started, self.http_options = True, config["http_options"]
        wanted = {each["name"]: each for each in config["applications"]}
        for name in self.applications.keys() - wanted.keys():
            self.show(name, "DELETING")
        for name, each in wanted.items():
            known = self.applications.get(name, {})
            if known.get("deployed_app_config") != each:
                self.applications[name] = {"deployed_app_config": each}
                self.show(name, "DEPLOYING")

    def _details(self) -> dict:
        empty = {"controller_info": {}, "proxies": {}, "applications": {}, "target_capacity": None}
        if not self.started:
            return empty
        proxies = {"node": {"status": self.proxy}}
        return {
            **empty,
            "proxies": proxies,
            "applications": self.applications,
            "http_options": self.http_options,
            "proxy_location": "EveryNode",
        }


@pytest.fixture
def ray_serve():
    return FakeServe()


@pytest.fixture
async def deployer(ray_serve):
    deployer = make_deployer(ray_serve)
    yield deployer
    await deployer.aclose()


def make_deployer(handler, host="127.0.0.1"):
    return Deployer("http://10.0.0.5:8265", None, host, 8000, storage=STORAGE, transport=httpx.MockTransport(handler))


async def test_nothing_to_serve_starts_nothing(deployer, ray_serve):
    assert await deployer.apply([], {}) == {}
    assert ray_serve.configurations == []


async def test_ours_are_told_from_those_of_others(deployer, ray_serve):
    assert await deployer.ours() == set()
    await deployer.apply([BOT], {})
    elsewhere = {**ray_serve.applications["support-bot"]["deployed_app_config"], "name": "other"}
    elsewhere["args"] = {**elsewhere["args"], "model_path": "/elsewhere/models/m/other-7k2m9qxa"}
    ray_serve.applications["other"] = {"deployed_app_config": elsewhere, "status": "RUNNING"}
    ray_serve.applications["translator"] = {"deployed_app_config": FOREIGN, "status": "RUNNING"}
    ray_serve.applications["from-code"] = {"deployed_app_config": None, "status": "RUNNING"}
    assert await deployer.ours() == {"support-bot"}
    ray_serve.show("support-bot", "DELETING")
    assert await deployer.ours() == set()


async def test_the_configuration_says_all_of_it(deployer, ray_serve):
    await deployer.apply([BOT], {})
    assert ray_serve.configurations == [
        {
            "proxy_location": "EveryNode",
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "applications": [
                {
                    "name": "support-bot",
                    "route_prefix": "/support-bot",
                    "import_path": "serving.app:build",
                    "args": {
                        "name": "support-bot",
                        "model_path": "/storage/models/support-student/support-bot-7k2m9qxa",
                        "model_name": "support-student",
                        "version": 3,
                        "num_replicas": 2,
                        "cpus_per_replica": 1.0,
                        "gpus_per_replica": 0.0,
                    },
                }
            ],
        }
    ]


async def test_a_known_manifest_is_required_of_the_replicas(deployer, ray_serve):
    await deployer.apply([BOT], {"support-student@3": "ab" * 32, "support-student@4": "cd" * 32})
    assert ray_serve.configurations[-1]["applications"][0]["args"]["manifest_sha256"] == "ab" * 32


async def test_it_is_sent_again_only_when_something_differs(deployer, ray_serve):
    await deployer.apply([BOT], {})
    await deployer.apply([BOT], {})
    assert len(ray_serve.configurations) == 1
    await deployer.apply([replace(BOT, resolved_model="support-student@4", path="/storage/models/4")], {})
    assert len(ray_serve.configurations) == 2
    assert ray_serve.configurations[-1]["applications"][0]["args"]["version"] == 4


async def test_a_ray_that_forgot_is_told_again(deployer, ray_serve):
    await deployer.apply([BOT], {})
    ray_serve.started, ray_serve.applications = False, {}
    await deployer.apply([BOT], {})
    assert len(ray_serve.configurations) == 2


async def test_the_way_of_a_deployment(deployer, ray_serve):
    endpoint = "http://127.0.0.1:8000/support-bot/v1"

    async def status(state=DeploymentState.PENDING):
        return (await deployer.apply([replace(BOT, state=state)], {})).get("support-bot")

    assert await status() == DeploymentStatus(DeploymentState.DEPLOYING, "replicas are starting", endpoint)
    ray_serve.show("support-bot", "RUNNING")
    ready = DeploymentStatus(DeploymentState.READY, "support-student@3 answers requests", endpoint)
    assert await status() == ready
    taken_down = DeploymentStatus(DeploymentState.DELETING, "being taken down", endpoint)
    assert await status(DeploymentState.DELETING) == taken_down
    assert ray_serve.configurations[-1]["applications"] == []
    del ray_serve.applications["support-bot"]
    assert await status(DeploymentState.DELETING) is None
    assert len(ray_serve.configurations) == 2


@pytest.mark.parametrize("shown", ["DEPLOY_FAILED", "UNHEALTHY"])
async def test_a_failure_is_told_in_one_line(deployer, ray_serve, shown):
    await deployer.apply([BOT], {})
    ray_serve.show("support-bot", shown, "Failed to update the deployments ['support-student'].", TRACEBACK)
    status = (await deployer.apply([BOT], {}))["support-bot"]
    assert status.state is DeploymentState.FAILED
    assert status.message == (
        "Ray gave up on it: serving.errors.ModelDirectoryError: there is no model directory /storage/gone"
    )
    assert len(ray_serve.configurations) == 1


async def test_what_a_start_waits_for_is_told(deployer, ray_serve):
    await deployer.apply([BOT], {})
    ray_serve.show(
        "support-bot", "DEPLOYING", deployment_message="2 replicas that have taken more than 30s to be scheduled"
    )
    status = (await deployer.apply([BOT], {}))["support-bot"]
    assert status.state is DeploymentState.DEPLOYING
    assert status.message == "starting: 2 replicas that have taken more than 30s to be scheduled"


async def test_a_proxy_that_does_not_start_is_not_ready(deployer, ray_serve):
    ray_serve.proxy = "STARTING"
    for shown in ("DEPLOYING", "RUNNING"):
        await deployer.apply([BOT], {})
        ray_serve.show("support-bot", shown)
        status = (await deployer.apply([BOT], {}))["support-bot"]
        assert status.state is DeploymentState.DEPLOYING
        assert "is port 8000 taken" in status.message


async def test_applications_of_others_stay_as_they_are(deployer, ray_serve):
    ray_serve._configure({"http_options": {"host": "0.0.0.0", "port": 9000}, "applications": [FOREIGN]})
    ray_serve.applications["notebook"] = {"deployed_app_config": None, "status": "RUNNING"}
    assert await deployer.apply([], {}) == {}
    assert ray_serve.configurations == []
    status = (await deployer.apply([BOT], {}))["support-bot"]
    assert [each["name"] for each in ray_serve.configurations[-1]["applications"]] == ["support-bot", "translator"]
    assert ray_serve.configurations[-1]["applications"][1] == FOREIGN
    assert ray_serve.configurations[-1]["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert status.endpoint == "http://10.0.0.5:9000/support-bot/v1"


@pytest.mark.parametrize("name", ["translator", "notebook"])
async def test_a_name_that_another_application_has_is_refused(deployer, ray_serve, name):
    ray_serve._configure({"http_options": {"host": "127.0.0.1", "port": 9000}, "applications": [FOREIGN]})
    ray_serve.applications["notebook"] = {"deployed_app_config": None, "status": "RUNNING"}
    status = (await deployer.apply([replace(BOT, name=name)], {}))[name]
    assert status.state is DeploymentState.FAILED
    assert "not ours" in status.message
    assert ray_serve.configurations == []
    assert await deployer.apply([replace(BOT, name=name, state=DeploymentState.DELETING)], {}) == {}


@pytest.mark.parametrize(
    ("reply", "error", "words"),
    [
        (httpx.Response(503, text="The GCS may be down"), RayUnreachable, "503: The GCS may be down"),
        (httpx.Response(500, text=TRACEBACK), RayUnreachable, "500: serving.errors.ModelDirectoryError: there is no"),
        (httpx.Response(500, text=""), RayUnreachable, "answered 500"),
        (httpx.Response(401, text="Missing authentication token"), RayRefused, "did not take the token"),
        (httpx.Response(400, text="route_prefix is taken"), RayRefused, "route_prefix is taken"),
        (httpx.Response(200, json=[]), RayRefused, "no applications"),
        (httpx.Response(200, text="<html>"), RayRefused, "no applications"),
        (httpx.ConnectError("no route to host"), RayUnreachable, "no route to host"),
        (httpx.ReadTimeout("late"), RayUnreachable, "late"),
    ],
)
async def test_what_ray_says_no_to_is_not_what_cannot_be_seen(reply, error, words):
    async def answer(_):
        if isinstance(reply, Exception):
            raise reply
        return reply

    deployer = make_deployer(answer)
    with pytest.raises(error, match=words):
        await deployer.apply([BOT], {})
    await deployer.aclose()


async def test_the_token_is_read_at_each_call(ray_serve, tmp_path):
    token = tmp_path / "token"
    transport = httpx.MockTransport(ray_serve)
    deployer = Deployer("http://10.0.0.5:8265", token, "127.0.0.1", 8000, storage=STORAGE, transport=transport)
    with pytest.raises(RayUnreachable, match="RAY_AUTH_TOKEN_PATH"):
        await deployer.apply([], {})
    for secret in ("first", "second"):
        token.write_text(f"{secret}\n")
        await deployer.apply([], {})
        assert ray_serve.requests[-1].headers["authorization"] == f"Bearer {secret}"
    await deployer.aclose()


async def test_two_installations_on_one_ray_leave_each_other_alone(ray_serve):
    def installed(storage):
        transport = httpx.MockTransport(ray_serve)
        return Deployer("http://10.0.0.5:8265", None, "127.0.0.1", 8000, storage=Path(storage), transport=transport)

    first, second = installed("/storage"), installed("/other")
    theirs = replace(BOT, name="other-bot", path="/other/models/support-student/support-bot-9z")
    await first.apply([BOT], {})
    await second.apply([theirs], {})
    await first.apply([BOT], {})
    assert ray_serve.applications.keys() == {"support-bot", "other-bot"}
    assert {each["status"] for each in ray_serve.applications.values()} == {"DEPLOYING"}
    taken = await second.apply([theirs, replace(theirs, name="support-bot")], {})
    assert taken["support-bot"].state is DeploymentState.FAILED
    assert await second.apply([replace(theirs, state=DeploymentState.DELETING)], {}) != {}
    assert ray_serve.applications["support-bot"]["status"] == "DEPLOYING"
    for deployer in (first, second):
        await deployer.aclose()


@pytest.mark.parametrize("shown", ["config", "details"])
async def test_a_path_that_another_application_has_fails_that_deployment_alone(deployer, ray_serve, shown):
    ray_serve._configure({"http_options": {"host": "127.0.0.1", "port": 8000}, "applications": [FOREIGN]})
    if shown == "details":
        ray_serve.applications["notebook"] = {"status": "RUNNING", "route_prefix": "/desk"}
    name = {"config": "translate", "details": "desk"}[shown]
    statuses = await deployer.apply([BOT, replace(BOT, name=name)], {})
    assert statuses[name].state is DeploymentState.FAILED
    assert "take another name" in statuses[name].message
    assert statuses["support-bot"].state is DeploymentState.DEPLOYING
    assert [each["name"] for each in ray_serve.configurations[-1]["applications"]] == ["support-bot", "translator"]


async def test_what_somebody_else_takes_down_is_not_stored_as_going(deployer, ray_serve):
    await deployer.apply([BOT], {})
    ray_serve.show("support-bot", "DELETING")
    assert (await deployer.apply([BOT], {}))["support-bot"].state is DeploymentState.DEPLOYING
