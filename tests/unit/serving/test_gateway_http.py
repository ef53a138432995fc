"""What stands before every request: tokens, limits, and the paths that there are."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_backends import CANARY, QUESTION, STABLE, TOKEN, LocalBackends, Scripted, entrance, http_client, table, whole
from prometheus_client.parser import text_string_to_metric_families

from serving.backend import Chunk, Head
from serving.engine import Load
from serving.errors import Unavailable
from serving.gateway_http import build_gateway
from serving.limits import CallerLimits, Limits
from serving.replica_metrics import ReplicaMetrics
from serving.routes import Route, RouteTable

CHAT = "/v1/chat/completions"
BODY = {"model": "support-bot", "messages": QUESTION, "max_tokens": 2}
OPEN = ("/", "/healthz", "/metrics")
GUARDED = ("/v1/models", "/openapi.json", "/docs", "/-/routes", "/-/healthz", "/support-bot/healthz", "/v1/nothing")


@pytest.fixture
def backends(loaded):
    return LocalBackends(**{STABLE: (1, loaded), CANARY: (2, loaded)})


@pytest.fixture
async def http(backends):
    async with http_client(entrance(backends)) as client:
        yield client


async def test_only_page_health_and_metrics_are_open(http):
    http.headers.pop("authorization")
    assert [(await http.get(path)).status_code for path in OPEN] == [200] * len(OPEN)
    for path in (*GUARDED, CHAT):
        reply = await http.get(path)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert reply.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("token", ["", "Bearer bad", "Basic Z29vZA==", "Bearer \x00", "good"])
async def test_no_other_token_is_let_in(http, backends, token):
    reply = await http.post(CHAT, json=BODY, headers={"authorization": token})
    assert reply.status_code == 401
    assert backends.calls == []


async def test_without_authentication_everybody_is_let_in(backends):
    async with http_client(entrance(backends, table(10_000, auth="none"))) as http:
        http.headers.pop("authorization")
        assert (await http.post(CHAT, json=BODY)).status_code == 200


async def test_a_control_plane_that_is_away_is_503(backends):
    class Away:
        async def caller(self, authorization):
            raise Unavailable("nobody can be asked about this token at the moment")

    gate = entrance(backends)
    gate.callers._directory = Away()
    async with http_client(gate) as http:
        reply = await http.post(CHAT, json=BODY)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert reply.headers["retry-after"] == "1"


async def test_the_token_goes_no_further_than_the_gateway(http, backends):
    await http.post(CHAT, json=BODY)
    [(_, request)] = backends.calls
    assert [name for name, _ in request.headers] == ["content-type", "accept"]
    assert b"good" not in request.body


@pytest.mark.parametrize("path", [path for path in GUARDED if path not in ("/v1/models", "/openapi.json")])
async def test_no_path_of_a_replica_or_of_serve_is_reached(http, backends, path):
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert (await http.request(method, path)).status_code == 404
    assert backends.calls == []


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", "/v1/models"), ("POST", "/"), ("PUT", CHAT)])
async def test_a_path_has_its_methods(http, method, path):
    reply = await http.request(method, path)
    assert (reply.status_code, reply.json()["error"]["type"]) == (405, "invalid_request_error")


async def test_models_are_listed_with_lineage_and_versions(backends):
    routes = RouteTable(routes=(*table(9_000, 1_000).routes, Route(name="not-yet", backends=())))
    async with http_client(entrance(backends, routes)) as http:
        ready, waiting = (await http.get("/v1/models")).json()["data"]
        [alone] = (await http.get("/support-bot/v1/models")).json()["data"]
        one = (await http.get("/v1/models/support-student@2")).json()
        unknown = await http.get("/v1/models/gpt-4o")
    assert (ready["id"], ready["version"], ready["teachers"]) == ("support-bot", 1, ["support-teacher@3"])
    assert [version["weight"] for version in ready["versions"]] == [9_000, 1_000]
    assert waiting == {"id": "not-yet", "object": "model", "created": 0, "owned_by": "athanor", "versions": []}
    assert alone == ready
    assert (one["id"], one["version"]) == ("support-student@2", 2)
    assert unknown.status_code == 404
    assert len(backends.calls) == 2  # each version was asked once


async def test_a_version_that_does_not_answer_is_listed_all_the_same():
    async with http_client(entrance(Scripted(*whole(500)))) as http:
        [model] = (await http.get("/v1/models")).json()["data"]
    assert (model["id"], model["model"], model["version"]) == ("support-bot", "support-student", 1)


async def test_a_deployment_is_named_by_the_model_or_by_the_path(http, backends):
    assert (await http.post("/support-bot/v1/chat/completions", json=BODY)).status_code == 200
    by_registry = {**BODY, "model": "support-student"}
    assert (await http.post("/support-bot/v1/chat/completions", json=by_registry)).status_code == 200
    for path, model in ((CHAT, "gpt-4o"), ("/other/v1/chat/completions", "support-bot")):
        reply = await http.post(path, json={**BODY, "model": model})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_deployment_without_replicas_is_not_ready_yet(backends):
    routes = RouteTable(routes=(Route(name="support-bot", backends=()),))
    async with http_client(entrance(backends, routes)) as http:
        reply = await http.post(CHAT, json=BODY)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"model": 3}', b'{"model": "%s"}' % (b"x" * 257), b"[" * 100_000],
)
async def test_bodies_that_name_no_model(http, body):
    reply = await http.post(CHAT, content=body)
    assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_body_has_a_limit(backends):
    async with http_client(entrance(backends), max_body_bytes=100) as http:
        reply = await http.post(CHAT, json={**BODY, "messages": "x" * 100})
    assert reply.status_code == 413


async def answered(gate, headers: list[tuple[bytes, bytes]], receive) -> list[dict]:
    """What the gateway sends to a client whose body comes as `receive` says."""
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b"", "state": {}}
    await build_gateway(gate)({**scope, "client": ("10.0.0.1", 5)}, receive, send)
    return sent


async def test_nothing_of_a_body_is_read_before_its_token_was_found_good(backends):
    async def receive():
        raise AssertionError("the body was asked for")

    [start, _] = await answered(entrance(backends), [(b"authorization", b"Bearer bad")], receive)
    assert start["status"] == 401


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever(backends, monkeypatch):
    monkeypatch.setattr("serving.gateway_http._BODY_S", 0.01)
    good = [(b"authorization", b"Bearer good")]
    [start, body] = await answered(entrance(backends), good, asyncio.Event().wait)
    assert (start["status"], dict(start["headers"])[b"connection"]) == (408, b"close")
    assert json.loads(body["body"])["error"]["code"] == "timeout"


async def test_a_client_that_goes_before_the_end_of_its_body_is_not_answered(backends):
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive():
        return messages.pop()

    assert await answered(entrance(backends), [(b"authorization", b"Bearer good")], receive) == []


async def test_a_token_that_asks_too_often_is_told_when_to_come_back(backends):
    now = [0.0]
    limits = CallerLimits(Limits(requests_per_s=0.5, burst=2), clock=lambda: now[0])
    async with http_client(entrance(backends, limits=limits)) as http:
        codes = [(await http.post(CHAT, json=BODY)).status_code for _ in range(3)]
        refused = await http.get("/v1/models")
        now[0] = 2.0
        later = await http.get("/v1/models")
    assert codes == [200, 200, 429]
    assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("rate_limit_exceeded", "2")
    assert later.status_code == 200


def test_requests_open_at_once_are_counted_by_token():
    limits = CallerLimits(Limits(open_requests=1))
    with limits.one("a"), limits.one("b"), pytest.raises(Exception, match="open already"), limits.one("a"):
        pass
    with limits.one("a"):
        pass


async def test_a_failure_of_the_gateway_leaks_nothing(backends, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret detail")

    gate = entrance(backends)
    monkeypatch.setattr(gate, "target", broken)
    async with http_client(gate) as http:
        reply = await http.post(CHAT, json=BODY)
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] in reply.text
    assert "secret detail" in caplog.text


async def test_request_ids_reach_the_replica_and_the_answer(http, backends):
    given = await http.post(CHAT, json=BODY, headers={"x-request-id": "mine-7"})
    made = await http.post(CHAT, json=BODY, headers={"x-request-id": "no\tid" * 50})
    assert given.json()["id"] == "chatcmpl-mine-7"
    assert [request.request_id[:4] for _, request in backends.calls] == ["mine", "req_"]
    assert made.status_code == 200


async def test_metrics_join_the_gateways_numbers_and_those_of_all_replicas(backends):
    replicas = [ReplicaMetrics("support-bot", "support-student@1", name) for name in ("one", "two")]
    for seconds, replica in enumerate(replicas, 1):
        replica.admitted(0.1, 10 * seconds, 4)
        replica.first_token(0.2)
        replica.inter_token([0.01, 0.02])
        replica.stepped(Load(seconds, 3, kv_used=25, kv_total=100), 10, 2, 0.03)
        replica.finished("stop", 5, 0.5)
    backends.metrics[STABLE] = [replica.figures() for replica in replicas]
    async with http_client(entrance(backends)) as http:
        await http.post(CHAT, json={**BODY, "stream": True})
        reply = await http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(reply.text)}
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    running = {
        sample.labels["replica"]: sample.value for sample in families["athanor_serve_num_requests_running"].samples
    }
    assert running == {"one": 1, "two": 2}
    assert [sample.value for sample in families["athanor_serve_kv_cache_usage_ratio"].samples] == [0.25, 0.25]
    assert {sample.value for sample in families["athanor_serve_prompt_tokens"].samples if "total" in sample.name} == {
        10,
        20,
    }
    for name in ("athanor_serve_time_to_first_token_seconds", "athanor_gateway_time_to_first_token_seconds"):
        counts = [sample.value for sample in families[name].samples if sample.name.endswith("_count")]
        assert sum(counts) > 0, name
    [requests] = [sample for sample in families["athanor_serve_requests"].samples if sample.name.endswith("_total")]
    assert (requests.labels["code"], requests.value) == ("200", 1)


async def test_whoever_scrapes_more_often_than_once_a_second_costs_the_replicas_nothing_more(backends, monkeypatch):
    asked = []

    async def figures(app):
        asked.append(app)
        await asyncio.sleep(0)
        return ()

    monkeypatch.setattr(backends, "figures", figures)
    gate = entrance(backends)
    async with http_client(gate) as http:
        await asyncio.gather(*(http.get("/metrics") for _ in range(20)))
        assert asked == [STABLE]
        await http.post(CHAT, json=BODY)
        assert "athanor_serve_requests_total{" in (await http.get("/metrics")).text  # its own numbers are always new
        monkeypatch.setattr("serving.gateway_metrics._FRESH_S", 0)
        await http.get("/metrics")
    assert asked == [STABLE] * 2


async def test_replicas_that_keep_their_numbers_are_left_out_of_one_scrape(backends, monkeypatch):
    async def figures(app):
        raise TimeoutError

    monkeypatch.setattr(backends, "figures", figures)
    async with http_client(entrance(backends)) as http:
        assert (await http.get("/metrics")).status_code == 200


async def test_the_page_allows_its_own_script_alone(http):
    reply = await http.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert not [word for word in ("src=", "https://", "http://", "@import", "onclick=") if word in reply.text]


async def test_headers_of_one_connection_stay_behind(backends):
    odd = Scripted(Head(200, (("connection", "close"), ("x-request-id", "other"), ("x-kept", "yes"))), Chunk(b"{}"))
    async with http_client(entrance(odd)) as http:
        reply = await http.post(CHAT, json=BODY)
    assert (reply.headers["x-kept"], "connection" in reply.headers) == ("yes", False)
    assert reply.headers["x-request-id"].startswith("req_")
    assert json.loads(reply.content) == {}
    assert TOKEN["authorization"] not in str(odd.calls)
