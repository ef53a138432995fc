"""Keeps Ray Serve as planned, through Serve's REST API, and says what it shows of each application of ours.

That API takes the whole configuration at once: an application which is not in it is taken down. So the applications of
others are sent back as they were; ours are told by their import path and a path of our storage. Nothing is sent when
nothing differs, and Serve is not started for nothing. What to serve is serve_plan.py's part, what follows rollout.py's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import RayRefused, RayUnreachable
from cluster.launcher import authorization
from cluster.rollout import NOT_SEEN, Seen, Shown
from cluster.serve_plan import GATEWAY, GATEWAY_PATH, JUDGE_PATH, REPLICA_PATH, Plan
from cluster.settings import EVERY_INTERFACE

GRPC_SERVICERS = (
    "athanor.v1.inference_service_pb2_grpc.add_InferenceServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)
_PATH = "/api/serve/applications/"
_READ_TIMEOUT_S = 15.0
_WRITE_TIMEOUT_S = 90.0  # the first configuration starts Serve
_SEND_TIMEOUT_S = 3.0  # what takes longer to leave may be old when it arrives
_STATES = {
    "NOT_STARTED": Shown.STARTING,
    "DEPLOYING": Shown.STARTING,
    "RUNNING": Shown.READY,
    "DEPLOY_FAILED": Shown.FAILED,
    "UNHEALTHY": Shown.UNHEALTHY,
    "DELETING": Shown.STARTING,  # by somebody else: what goes for good is told by our store alone
}
_ANSWERING = ("RUNNING", "UPDATING")  # one that is told something new answers right afterwards
_EXCEPTION_LINE = re.compile(r"^(?:ray\.exceptions\.)?[\w.]+(?:Error|Exception|Failed)\b.*$", re.MULTILINE)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """Where Serve listens, for clients."""

    host: str
    port: int
    grpc_port: int | None = None


@dataclass(frozen=True)
class ServeView:
    """What Serve shows."""

    endpoint: Endpoint
    applications: Mapping[str, Seen] = field(default_factory=dict)
    """Of ours, by name; also those that go."""
    going: frozenset[str] = frozenset()
    """Those of them that Serve is taking down."""
    is_routed: bool = False
    """The gateway runs, and goes by the plan."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Deployments that cannot be beside what others have there, and why."""
    trouble: str = ""
    """Why nobody can be answered, whatever the replicas are."""

    def seen(self, application: str) -> Seen:
        return self.applications.get(application, NOT_SEEN)


class Deployer:
    """Client of one Ray cluster's Serve. `listen` is where Serve listens if we are the ones to start it."""

    def __init__(
        self,
        dashboard_url: str,
        token_path: Path | None,
        listen: Endpoint,
        *,
        storage: Path,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """The token's file is read at each call, for it is renewed now and then.

        Applications of ours that belong to another `storage` are another installation's.
        """
        self._listen = listen
        self._dashboard_host = httpx.URL(dashboard_url).host
        self._token_path = token_path
        self._storage = storage
        self._client = httpx.AsyncClient(base_url=dashboard_url, transport=transport, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def apply(self, plan: Plan, before_write: Callable[[], Awaitable[None]] | None = None) -> ServeView:
        """Make Serve equal to the plan, as far as it can be beside the applications of others, and say what it shows.

        `before_write` raises if the plan is no longer the one to bring: Serve itself takes what comes last.
        RayUnreachable: nothing is known. RayRefused: Ray does not take the configuration.
        """
        seen = await self._read()
        refused = self._refused(plan, seen)
        wanted = self._allowed(plan, seen, refused)
        configuration = self._configuration(wanted, seen)
        if configuration != _current(seen):
            if before_write is not None:
                await before_write()
            await self._write(configuration, seen)
            seen = await self._read()
        return self._view(wanted, seen, refused)

    def _allowed(self, plan: Plan, seen: Json, refused: Mapping[str, str]) -> list[Json]:
        """What of the plan can be; what answers already of a deployment that is refused now is left as it is."""
        kept = [each for each in _current(seen) if self._is_ours(each) and _belongs_to_any(each, refused)]
        planned = [each for each in plan.applications if not _belongs_to_any(each, refused)]
        is_free = GATEWAY not in self._foreign_names(seen)
        found = [each for each in (*planned, *kept) if each["name"] != GATEWAY or is_free]
        return found if any(each["name"] != GATEWAY for each in found) else []

    async def ours(self) -> set[str]:
        """Names of the applications on Serve that this installation has deployed, wanted or not."""
        seen = await self._read()
        return {name for name in self._our_names(seen) if seen["applications"][name]["status"] != "DELETING"}

    async def _read(self) -> Json:
        reply = await self._ask("GET", timeout_s=_READ_TIMEOUT_S)
        try:
            details = reply.json()
        except ValueError:
            details = None
        if not isinstance(details, dict) or not isinstance(details.get("applications"), dict):
            raise RayRefused("SERVE_ANSWER", f"Ray Serve's answer has no applications: {reply.text[:200]}")
        return details

    async def _write(self, applications: Sequence[Json], seen: Json) -> None:
        document: dict[str, object] = {
            "proxy_location": seen.get("proxy_location") or "EveryNode",
            "http_options": self._http_options(seen),
            "applications": applications,
        }
        if self._listen.grpc_port is not None:
            document["grpc_options"] = self._grpc_options(seen)
        await self._ask("PUT", timeout_s=_WRITE_TIMEOUT_S, document=document)

    async def _ask(self, method: str, *, timeout_s: float, document: Json | None = None) -> httpx.Response:
        try:
            headers = authorization(self._token_path)
            limits = httpx.Timeout(_SEND_TIMEOUT_S, read=timeout_s)
            async with asyncio.timeout(timeout_s):
                reply = await self._client.request(method, _PATH, json=document, timeout=limits, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise RayUnreachable("SERVE_UNREACHABLE", f"Ray Serve did not answer: {error!r}") from error
        if reply.status_code >= 500:
            raise RayUnreachable("SERVE_UNREACHABLE", f"Ray Serve answered {reply.status_code}: {_gist(reply.text)}")
        if reply.status_code in (401, 403):
            raise RayRefused("RAY_TOKEN", f"Ray did not take the token ({reply.status_code}): {reply.text[:200]}")
        if reply.status_code >= 400:
            raise RayRefused("SERVE_REFUSED", f"Ray Serve refused the configuration: {reply.text[:500]}")
        return reply

    def _http_options(self, seen: Json) -> Json:
        """Where Serve listens: it keeps what it was started with."""
        options = seen.get("http_options")
        return options if isinstance(options, dict) else {"host": self._listen.host, "port": self._listen.port}

    def _grpc_options(self, seen: Json) -> Json:
        options = seen.get("grpc_options")
        if isinstance(options, dict) and options.get("grpc_servicer_functions"):
            return options
        return {"port": self._listen.grpc_port, "grpc_servicer_functions": list(GRPC_SERVICERS)}

    def _endpoint(self, seen: Json) -> Endpoint:
        options = self._http_options(seen)
        host = self._dashboard_host if options["host"] in EVERY_INTERFACE else options["host"]
        return Endpoint(host, options["port"], self._listen.grpc_port)

    def _view(self, wanted: Sequence[Json], seen: Json, refused: Mapping[str, str]) -> ServeView:
        ours, applications = self._our_names(seen), seen["applications"]
        gateway = next((each for each in wanted if each["name"] == GATEWAY), None)
        shown = applications.get(GATEWAY) if GATEWAY in ours else None
        trouble = ""
        if wanted and not _any_proxy_is_up(seen):
            port = self._http_options(seen)["port"]
            trouble = f"Serve's HTTP proxy is not up yet; is port {port} taken by something else?"
        elif gateway is not None and (shown is None or not _seen(shown).answers):
            trouble = f"the gateway is not up yet: {_seen(shown).message if shown else NOT_SEEN.message}"
        is_routed = shown is not None and shown.get("deployed_app_config") == gateway and shown["status"] == "RUNNING"
        return ServeView(
            self._endpoint(seen),
            {name: _seen(applications[name]) for name in ours},
            frozenset(name for name in ours if applications[name]["status"] == "DELETING"),
            is_routed=is_routed,
            refused=refused,
            trouble=trouble,
        )

    def _configuration(self, wanted: Sequence[Json], seen: Json) -> list[Json]:
        """The whole configuration, by name: ours as planned, others as they are."""
        others = [each for each in _current(seen) if not self._is_ours(each)]
        return sorted([*others, *wanted], key=lambda each: str(each["name"]))

    def _is_ours(self, config: Json | None) -> bool:
        """By configuration: applications deployed from code have none."""
        args = (config or {}).get("args") or {}
        if not config or config["import_path"] not in (REPLICA_PATH, GATEWAY_PATH, JUDGE_PATH):
            return False
        if config["import_path"] == GATEWAY_PATH:
            return bool(args.get("storage") == str(self._storage))
        return Path(str(args.get("model_path", ""))).is_relative_to(self._storage / "models")

    def _our_names(self, seen: Json) -> set[str]:
        applications: Mapping[str, Json] = seen["applications"]
        return {name for name, each in applications.items() if self._is_ours(each.get("deployed_app_config"))}

    def _foreign_names(self, seen: Json) -> set[str]:
        """Applications of others. Of one that goes Serve tells no configuration, so it may have been ours."""
        names: set[str] = {name for name, each in seen["applications"].items() if each["status"] != "DELETING"}
        return names - self._our_names(seen)

    def _refused(self, plan: Plan, seen: Json) -> dict[str, str]:
        """Deployments that would take from others what is theirs: a path, or the name of an application."""
        foreign = sorted(self._foreign_names(seen))
        owners = {_route_prefix(seen["applications"][name]): name for name in reversed(foreign)}
        found: dict[str, str] = {}
        for name in plan.prefixes:
            theirs = [each["name"] for each in plan.applications if each["name"] in foreign and _is_of(each, name)]
            owner = owners.get("/") or owners.get(f"/{name}")
            if GATEWAY in foreign or theirs:
                taken = GATEWAY if GATEWAY in foreign else theirs[0]
                found[name] = f"Ray Serve has an application {taken!r} that is not ours; it is left alone"
            elif owner:
                path = "/" if owners.get("/") else f"/{name}"
                found[name] = f"{path} belongs to {owner!r} on Ray Serve, which is not ours; it is left alone"
        return found


def _is_of(application: Json, deployment: str) -> bool:
    return bool(application["name"] != GATEWAY and application["args"]["name"] == deployment)


def _belongs_to_any(application: Json, deployments: Mapping[str, str]) -> bool:
    return any(_is_of(application, name) for name in deployments)


def _seen(application: Json) -> Seen:
    """One application as Serve shows it, with Ray's own words where it has any."""
    state = _STATES.get(application["status"], Shown.STARTING)
    deployments: list[Json] = list((application.get("deployments") or {}).values())
    replicas = [replica for each in deployments for replica in each.get("replicas") or ()]
    num_running = sum(replica.get("state") in _ANSWERING for replica in replicas)
    details = [str(each.get("message") or "") for each in deployments]
    words = next((text for text in [*details, str(application.get("message") or "")] if text.strip()), "")
    if state in (Shown.FAILED, Shown.UNHEALTHY):
        return Seen(state, f"Ray gave up on it: {_gist(words)}" if words else "Ray gave up on it", num_running)
    return Seen(state, f"starting: {_gist(words)}" if words else "replicas are starting", num_running)


def _route_prefix(application: Json) -> str:
    config = application.get("deployed_app_config") or {}
    return str(application.get("route_prefix") or config.get("route_prefix") or "")


def _current(seen: Json) -> list[Json]:
    """What Serve was last told, by name. Applications deployed from code have no configuration and are left alone."""
    configured = [
        application["deployed_app_config"]
        for application in seen["applications"].values()
        if application.get("deployed_app_config") and application["status"] != "DELETING"
    ]
    return sorted(configured, key=lambda each: str(each["name"]))


def _any_proxy_is_up(seen: Json) -> bool:
    return any(proxy["status"] in ("HEALTHY", "DRAINING") for proxy in seen.get("proxies", {}).values())


def _gist(words: str) -> str:
    """The exception a traceback ends with, else the first line."""
    errors = _EXCEPTION_LINE.findall(words)
    return str(errors[-1] if errors else words.strip().partition("\n")[0])[:500]
