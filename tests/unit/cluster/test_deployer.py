"""The deployer against a Ray Serve that is played by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from cluster.deployer import Deployer, Endpoint
from cluster.errors import Conflict, RayRefused, RayUnreachable
from cluster.rollout import Shown
from cluster.serve_plan import GATEWAY, Plan, Surroundings, plan
from cluster.store.deployment_records import Phase, Revision
from cluster.store.records import DeploymentState, StoredDeployment

STORAGE = Path("/storage")
APP = "support-bot--r1"
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
    revisions=(Revision(1, "support-student@3", "/storage/models/support-student/support-bot-7k2m9qxa"),),
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


def make_deployer(handler, host="127.0.0.1", storage=STORAGE, grpc_port=None):
    listen = Endpoint(host, 8000, grpc_port)
    return Deployer("http://10.0.0.5:8265", None, listen, storage=storage, transport=httpx.MockTransport(handler))


def planned(*deployments, storage=STORAGE):
    return plan(deployments, {}, Surroundings(storage, ("127.0.0.1:50051",)))


def named(name):
    return replace(BOT, name=name)


async def test_nothing_to_serve_starts_nothing(deployer, ray_serve):
    view = await deployer.apply(Plan())
    assert (dict(view.applications), view.trouble) == ({}, "")
    assert ray_serve.configurations == []


async def test_ours_are_told_from_those_of_others(deployer, ray_serve):
    assert await deployer.ours() == set()
    await deployer.apply(planned(BOT))
    elsewhere = {**ray_serve.applications[APP]["deployed_app_config"], "name": "other"}
    elsewhere["args"] = {**elsewhere["args"], "model_path": "/elsewhere/models/m/other-7k2m9qxa"}
    ray_serve.applications["other"] = {"deployed_app_config": elsewhere, "status": "RUNNING"}
    ray_serve.applications["translator"] = {"deployed_app_config": FOREIGN, "status": "RUNNING"}
    ray_serve.applications["from-code"] = {"deployed_app_config": None, "status": "RUNNING"}
    assert await deployer.ours() == {GATEWAY, APP}
    ray_serve.show(APP, "DELETING")
    assert await deployer.ours() == {GATEWAY}


async def test_the_configuration_says_all_of_it(deployer, ray_serve):
    wanted = planned(BOT)
    await deployer.apply(wanted)
    assert ray_serve.configurations == [
        {
            "proxy_location": "EveryNode",
            "http_options": {"host": "127.0.0.1", "port": 8000},
            "applications": list(wanted.applications),
        }
    ]


async def test_grpc_is_asked_for_where_it_has_a_port(ray_serve):
    deployer = make_deployer(ray_serve, grpc_port=9001)
    await deployer.apply(planned(BOT))
    options = ray_serve.configurations[-1]["grpc_options"]
    assert options["port"] == 9001
    assert any("InferenceService" in name for name in options["grpc_servicer_functions"])
    await deployer.aclose()


async def test_it_is_sent_again_only_when_something_differs(deployer, ray_serve):
    await deployer.apply(planned(BOT))
    await deployer.apply(planned(BOT))
    assert len(ray_serve.configurations) == 1
    second = Revision(2, "support-student@4", "/storage/models/4")
    await deployer.apply(planned(replace(BOT, revisions=(*BOT.revisions, second))))
    assert len(ray_serve.configurations) == 2
    assert {each["name"] for each in ray_serve.configurations[-1]["applications"]} == {
        GATEWAY,
        APP,
        "support-bot--r2",
    }


async def test_a_ray_that_forgot_is_told_again(deployer, ray_serve):
    await deployer.apply(planned(BOT))
    ray_serve.started, ray_serve.applications = False, {}
    await deployer.apply(planned(BOT))
    assert len(ray_serve.configurations) == 2


async def test_the_way_of_a_revision(deployer, ray_serve):
    view = await deployer.apply(planned(BOT))
    assert view.seen(APP).state is Shown.STARTING
    assert (view.endpoint, view.is_routed) == (Endpoint("127.0.0.1", 8000), False)
    assert "the gateway is not up yet" in view.trouble
    ray_serve.show(APP, "RUNNING")
    ray_serve.show(GATEWAY, "RUNNING")
    view = await deployer.apply(planned(BOT))
    assert (view.seen(APP).state, view.is_routed, view.trouble) == (Shown.READY, True, "")
    view = await deployer.apply(planned(replace(BOT, state=DeploymentState.DELETING)))
    assert APP in view.going
    assert ray_serve.configurations[-1]["applications"] == []
    ray_serve.applications.clear()
    view = await deployer.apply(planned(replace(BOT, state=DeploymentState.DELETING)))
    assert dict(view.applications) == {}
    assert len(ray_serve.configurations) == 2


async def test_the_gateway_is_told_of_a_change_before_it_is_routed(deployer, ray_serve):
    await deployer.apply(planned(BOT))
    ray_serve.show(GATEWAY, "RUNNING")
    assert (await deployer.apply(planned(BOT))).is_routed
    live = replace(BOT, revisions=(replace(BOT.revisions[0], phase=Phase.LIVE, weight=10_000),))
    view = await deployer.apply(planned(live))
    assert not view.is_routed, "it was told, and has not said that it took it"
    ray_serve.show(GATEWAY, "RUNNING")
    assert (await deployer.apply(planned(live))).is_routed


@pytest.mark.parametrize(("shown", "state"), [("DEPLOY_FAILED", Shown.FAILED), ("UNHEALTHY", Shown.UNHEALTHY)])
async def test_a_failure_is_told_in_one_line(deployer, ray_serve, shown, state):
    await deployer.apply(planned(BOT))
    ray_serve.show(APP, shown, "Failed to update the deployments ['Replica'].", TRACEBACK)
    seen = (await deployer.apply(planned(BOT))).seen(APP)
    assert seen.state is state
    assert seen.message == (
        "Ray gave up on it: serving.errors.ModelDirectoryError: there is no model directory /storage/gone"
    )
    assert len(ray_serve.configurations) == 1


async def test_what_a_start_waits_for_is_told(deployer, ray_serve):
    await deployer.apply(planned(BOT))
    ray_serve.show(APP, "DEPLOYING", deployment_message="2 replicas that have taken more than 30s to be scheduled")
    seen = (await deployer.apply(planned(BOT))).seen(APP)
    assert seen.state is Shown.STARTING
    assert seen.message == "starting: 2 replicas that have taken more than 30s to be scheduled"


async def test_replicas_that_answer_are_counted_while_others_change(deployer, ray_serve):
    await deployer.apply(planned(BOT))
    ray_serve.show(APP, "UNHEALTHY")
    states = ("RUNNING", "STARTING", "UPDATING", "STOPPING")
    ray_serve.applications[APP]["deployments"]["model"]["replicas"] = [{"state": each} for each in states]
    seen = (await deployer.apply(planned(BOT))).seen(APP)
    assert (seen.num_running, seen.answers) == (2, True)


async def test_a_proxy_that_does_not_start_is_trouble(deployer, ray_serve):
    ray_serve.proxy = "STARTING"
    await deployer.apply(planned(BOT))
    assert "is port 8000 taken" in (await deployer.apply(planned(BOT))).trouble


async def test_applications_of_others_stay_as_they_are(deployer, ray_serve):
    ray_serve._configure({"http_options": {"host": "0.0.0.0", "port": 9000}, "applications": [FOREIGN]})
    ray_serve.applications["notebook"] = {"deployed_app_config": None, "status": "RUNNING"}
    await deployer.apply(Plan())
    assert ray_serve.configurations == []
    view = await deployer.apply(planned(BOT))
    assert [each["name"] for each in ray_serve.configurations[-1]["applications"]] == [GATEWAY, APP, "translator"]
    assert ray_serve.configurations[-1]["applications"][2] == FOREIGN
    assert ray_serve.configurations[-1]["http_options"] == {"host": "0.0.0.0", "port": 9000}
    assert view.endpoint == Endpoint("10.0.0.5", 9000)


async def test_a_name_that_another_application_has_is_refused(deployer, ray_serve):
    ray_serve._configure({"http_options": {"host": "127.0.0.1", "port": 9000}, "applications": []})
    ray_serve.applications[APP] = {"deployed_app_config": None, "status": "RUNNING"}
    view = await deployer.apply(planned(BOT))
    assert "not ours" in view.refused["support-bot"]
    assert ray_serve.configurations == []
    view = await deployer.apply(planned(replace(BOT, state=DeploymentState.DELETING)))
    assert dict(view.applications) == {}, "what is left of that name is not ours"


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
        await deployer.apply(planned(BOT))
    await deployer.aclose()


async def test_what_is_old_is_not_written(deployer, ray_serve):
    async def check():
        asked.append(ray_serve.requests[-1].method)
        if len(asked) == 1:
            raise Conflict("DEPLOYMENT_CHANGED", "look again")

    asked = []
    with pytest.raises(Conflict):
        await deployer.apply(planned(BOT), check)
    assert ray_serve.configurations == []
    for _ in range(2):
        await deployer.apply(planned(BOT), check)
    assert len(ray_serve.configurations) == 1
    assert asked == ["GET", "GET"], "directly before each write, and only then"
    limits = [each.extensions["timeout"] for each in ray_serve.requests if each.method == "PUT"]
    assert all(max(each["connect"], each["write"]) < each["read"] for each in limits)


async def test_the_token_is_read_at_each_call(ray_serve, tmp_path):
    token, listen = tmp_path / "token", Endpoint("127.0.0.1", 8000)
    transport = httpx.MockTransport(ray_serve)
    deployer = Deployer("http://10.0.0.5:8265", token, listen, storage=STORAGE, transport=transport)
    with pytest.raises(RayUnreachable, match="RAY_AUTH_TOKEN_PATH"):
        await deployer.apply(Plan())
    for secret in ("first", "second"):
        token.write_text(f"{secret}\n")
        await deployer.apply(Plan())
        assert ray_serve.requests[-1].headers["authorization"] == f"Bearer {secret}"
    await deployer.aclose()


async def test_a_second_installation_on_one_ray_leaves_the_first_alone(ray_serve):
    """There is one address, and so one gateway: the second is told whose it is."""
    first, second = (make_deployer(ray_serve, storage=Path(each)) for each in ("/storage", "/other"))
    theirs = replace(BOT, name="other-bot", revisions=(Revision(1, "m@1", "/other/models/m/1"),))
    await first.apply(planned(BOT))
    view = await second.apply(planned(theirs, storage=Path("/other")))
    assert "not ours" in view.refused["other-bot"]
    await second.apply(Plan())
    await first.apply(planned(BOT))
    assert ray_serve.applications.keys() == {GATEWAY, APP}
    assert {each["status"] for each in ray_serve.applications.values()} == {"DEPLOYING"}
    for deployer in (first, second):
        await deployer.aclose()


@pytest.mark.parametrize("shown", ["config", "details"])
async def test_a_path_that_another_application_has_fails_that_deployment_alone(deployer, ray_serve, shown):
    ray_serve._configure({"http_options": {"host": "127.0.0.1", "port": 8000}, "applications": [FOREIGN]})
    if shown == "details":
        ray_serve.applications["notebook"] = {"status": "RUNNING", "route_prefix": "/desk"}
    name = {"config": "translate", "details": "desk"}[shown]
    view = await deployer.apply(planned(BOT, named(name)))
    assert view.refused.keys() == {name}
    assert view.seen(APP).state is Shown.STARTING
    assert [each["name"] for each in ray_serve.configurations[-1]["applications"]] == [GATEWAY, APP, "translator"]


async def test_an_address_whose_root_is_somebody_elses_is_left_alone(deployer, ray_serve):
    ray_serve._configure({"http_options": {"host": "x", "port": 1}, "applications": [{**FOREIGN, "route_prefix": "/"}]})
    view = await deployer.apply(planned(BOT))
    assert view.refused == {
        "support-bot": "/ belongs to 'translator' on Ray Serve, which is not ours; it is left alone"
    }
    assert ray_serve.configurations == []


async def test_one_that_goes_keeps_nobody_out_though_serve_does_not_say_whose_it_was(deployer, ray_serve):
    await deployer.apply(planned(BOT))
    ray_serve.applications[APP] = {"deployed_app_config": None, "status": "DELETING"}
    view = await deployer.apply(planned(BOT))
    assert dict(view.refused) == {}
    assert {each["name"] for each in ray_serve.configurations[-1]["applications"]} == {GATEWAY, APP}


async def test_a_deployment_that_is_refused_keeps_what_it_has(deployer, ray_serve):
    """A name that somebody else took meanwhile stops what comes, and takes nothing away."""
    await deployer.apply(planned(BOT))
    ray_serve.applications["support-bot--r2"] = {"deployed_app_config": None, "status": "RUNNING"}
    second = Revision(2, "support-student@4", "/storage/models/4")
    view = await deployer.apply(planned(replace(BOT, revisions=(*BOT.revisions, second))))
    assert "not ours" in view.refused["support-bot"]
    assert ray_serve.applications[APP]["status"] != "DELETING"
    assert ray_serve.applications[GATEWAY]["status"] != "DELETING"
