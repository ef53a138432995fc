"""The launcher against answers as Ray 2.60 gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from cluster.capacity import Resources
from cluster.errors import RayRefused, RayUnreachable
from cluster.launcher import RayLauncher, RayNode, Submission
from cluster.policy import View
from cluster.ray_state import ListedJob
from cluster.settings import Settings

Handler = Callable[[httpx.Request], httpx.Response]
SUBMISSION = Submission("bot-abc-1", "python -m cluster.driver", {"job": "bot"}, {"DS_ACCELERATOR": "cpu"})
ALREADY = "Traceback (most recent call last):\nValueError: Job with submission_id bot-abc-1 already exists. Please use"


def launcher(handler: Handler, **settings: object) -> RayLauncher:
    return RayLauncher(Settings.model_validate(settings), transport=httpx.MockTransport(handler))


def answering(status: int, body: object) -> Handler:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda request: httpx.Response(status, text=text, request=request)


async def test_submission_carries_id_entrypoint_and_nothing_secret(tmp_path: Path) -> None:
    seen: list[httpx.Request] = []
    token = tmp_path / "token"
    token.write_text("s3cret\n")

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"submission_id": "bot-abc-1"})

    await launcher(handler, ray_token_path=token).submit(SUBMISSION)
    request = seen[0]
    assert (request.method, request.url.path) == ("POST", "/api/jobs/")
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert json.loads(request.content) == {
        "submission_id": "bot-abc-1",
        "entrypoint": "python -m cluster.driver",
        "metadata": {"job": "bot"},
        "runtime_env": {"env_vars": {"DS_ACCELERATOR": "cpu"}},
        "entrypoint_num_cpus": 0,
    }


@pytest.mark.parametrize("status", [400, 500])
async def test_repeated_submission_counts_as_submitted(status: int) -> None:
    await launcher(answering(status, ALREADY)).submit(SUBMISSION)


@pytest.mark.parametrize(
    ("status", "view"),
    [
        ("PENDING", View.ALIVE),
        ("RUNNING", View.ALIVE),
        ("SUCCEEDED", View.ENDED),
        ("FAILED", View.ENDED),
        ("STOPPED", View.ENDED),
    ],
)
async def test_views(status: str, view: View) -> None:
    job = await launcher(answering(200, {"status": status, "message": "a\nlast words"})).look("bot-abc-1")
    assert (job.view, job.words) == (view, "last words")


async def test_only_rays_own_words_say_that_a_job_is_unknown() -> None:
    job = await launcher(answering(404, "Job bot-abc-1 does not exist")).look("bot-abc-1")
    assert job.view is View.UNKNOWN
    with pytest.raises(RayUnreachable):
        await launcher(answering(404, "404: Not Found")).look("bot-abc-1")


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("")])
async def test_cannot_reach_is_not_refused(error: httpx.HTTPError) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    ray = launcher(handler)
    for call in (ray.version(), ray.look("x"), ray.submit(SUBMISSION), ray.stop("x")):
        with pytest.raises(RayUnreachable, match="cannot be reached"):
            await call


@pytest.mark.parametrize("status", [401, 403])
async def test_wrong_token_is_told_as_such_and_decides_nothing(status: int) -> None:
    with pytest.raises(RayUnreachable, match="RAY_AUTH_TOKEN_PATH") as caught:
        await launcher(answering(status, "Unauthorized")).look("x")
    assert caught.value.reason == "RAY_UNAUTHORIZED"


async def test_missing_token_file_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(RayUnreachable, match="token cannot be read"):
        await launcher(answering(200, {}), ray_token_path=tmp_path / "none").version()


async def test_an_address_that_is_none_is_told_as_such() -> None:
    with pytest.raises(RayUnreachable, match="cannot be reached"):
        await launcher(answering(200, {}), ray_dashboard_url="http://127.0.0.1:82x65").version()


async def test_rays_own_trouble_is_no_answer_about_the_job() -> None:
    with pytest.raises(RayUnreachable, match="No available agent"):
        await launcher(answering(500, "No available agent to submit job, please try again later.")).submit(SUBMISSION)


async def test_wrong_request_is_refused_with_the_line_that_matters() -> None:
    with pytest.raises(RayRefused, match="TypeError: runtime_env must be a dict"):
        await launcher(answering(400, "Traceback\n  File x\nTypeError: runtime_env must be a dict\n")).submit(
            SUBMISSION
        )


async def test_something_else_on_the_port() -> None:
    with pytest.raises(RayUnreachable, match="not Ray's dashboard"):
        await launcher(answering(200, "<html>hello</html>")).version()


async def test_stopping_what_is_unknown_is_fine() -> None:
    await launcher(answering(404, "Job x does not exist")).stop("x")


async def test_all_submitted_jobs_are_listed_with_their_owners() -> None:
    row = {"type": "SUBMISSION", "submission_id": "x-1", "status": "RUNNING", "metadata": {"owner": "me"}}
    assert await launcher(answering(200, [row])).jobs() == [ListedJob("x-1", View.ALIVE, {"owner": "me"})]


async def test_what_is_reserved_is_asked_of_groups_and_of_actors_that_live() -> None:
    rows = {
        "/api/v0/placement_groups": {
            "state": "CREATED",
            "bundles": [{"unit_resources": {"CPU": 2.0}, "node_id": "a"}],
        },
        "/api/v0/actors": {
            "state": "ALIVE",
            "placement_group_id": None,
            "node_id": "a",
            "required_resources": {"CPU": 0.5},
        },
    }
    asked: list[httpx.URL] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return httpx.Response(200, json={"data": {"result": {"result": [rows[request.url.path]]}}}, request=request)

    assert await launcher(handler).reserved() == {"a": Resources(2.5, 0.0)}
    assert all(url.params["detail"] == "1" for url in asked)
    assert asked[1].params["filter_values"] == "ALIVE"


@pytest.mark.parametrize("body", [[{}], [None], {"data": {"result": {"result": [{}]}}}, "<html>"])
async def test_lists_that_cannot_be_read_say_nothing(body: object) -> None:
    for ask in (launcher(answering(200, body)).reserved(), launcher(answering(200, body)).jobs()):
        with pytest.raises(RayUnreachable):
            await ask


def node_row(name: str, **fields: object) -> dict[str, object]:
    known = {"node_id": name, "node_ip": f"10.0.0.{name}", "is_head_node": False, "state": "ALIVE"}
    return {**known, "resources_total": {"CPU": 8.0, "GPU": 2.0, "memory": 1.0}, **fields}


def nodes_answer(*rows: dict[str, object], result: bool = True, **fields: object) -> dict[str, object]:
    found = {"total": len(rows), "num_after_truncation": len(rows), "result": list(rows), **fields}
    return {"result": result, "msg": "", "data": {"result": found}}


async def test_nodes_come_with_the_head_first_and_the_dead_marked() -> None:
    rows = (
        node_row("2"),
        node_row("1", state="DEAD", resources_total={}),
        node_row("3", is_head_node=True, resources_total={"CPU": 4.0}),
        node_row("0", resources_total=None),
    )
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=nodes_answer(*rows))

    assert await launcher(handler).nodes() == [
        RayNode("3", "10.0.0.3", Resources(4.0, 0.0), is_head=True),
        RayNode("0", "10.0.0.0", Resources(0.0, 0.0)),
        RayNode("1", "10.0.0.1", Resources(0.0, 0.0), is_alive=False),
        RayNode("2", "10.0.0.2", Resources(8.0, 2.0)),
    ]
    assert dict(seen[0].url.params) == {"limit": "10000", "detail": "false"}


@pytest.mark.parametrize(
    "answer",
    [
        {"result": False, "msg": "Failed to query the data source", "data": None},
        {"result": True, "msg": "", "data": {"result": {"total": 1, "num_after_truncation": 1}}},
        nodes_answer(node_row("1", state=None, node_id=None, resources_total={"CPU": "many"})),
        nodes_answer(node_row("1"), num_after_truncation=2),
        nodes_answer(node_row("1"), partial_failure_warning="2 of 3 sources did not answer"),
    ],
)
async def test_half_a_list_of_nodes_is_none(answer: dict[str, object]) -> None:
    """A node that is left out would look like one that is gone."""
    with pytest.raises(RayUnreachable):
        await launcher(answering(200, answer)).nodes()
