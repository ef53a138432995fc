"""Keeps Ray Serve as the stored deployments say, through Serve's REST API, and says how far each of them is.

That API takes the whole configuration at once: an application which is not in it is taken down. So the applications of
others are sent back as they were; ours are told by their import path and a model of our storage. Nothing is sent when
nothing differs, and Serve is not started for nothing. What to deploy and what to store of it is the reconciler's part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cluster.errors import RayRefused, RayUnreachable
from cluster.launcher import authorization
from cluster.settings import EVERY_INTERFACE
from cluster.store.records import DeploymentState, StoredDeployment

IMPORT_PATH = "serving.app:build"
_PATH = "/api/serve/applications/"
_READ_TIMEOUT_S = 15.0
_WRITE_TIMEOUT_S = 90.0  # the first configuration starts Serve
_STATES = {
    "NOT_STARTED": DeploymentState.DEPLOYING,
    "DEPLOYING": DeploymentState.DEPLOYING,
    "RUNNING": DeploymentState.READY,
    "DEPLOY_FAILED": DeploymentState.FAILED,
    "UNHEALTHY": DeploymentState.FAILED,
    "DELETING": DeploymentState.DEPLOYING,  # by somebody else: what goes for good is told by our store alone
}
_EXCEPTION_LINE = re.compile(r"^(?:ray\.exceptions\.)?[\w.]+(?:Error|Exception|Failed)\b.*$", re.MULTILINE)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class DeploymentStatus:
    """What Ray shows of one deployment; `endpoint` is the base URL for an OpenAI client."""

    state: DeploymentState
    message: str
    endpoint: str


class Deployer:
    """Client of one Ray cluster's Serve. `host` and `port` are what Serve listens on if we are the ones to start it."""

    def __init__(
        self,
        dashboard_url: str,
        token_path: Path | None,
        host: str,
        port: int,
        *,
        storage: Path,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """The token's file is read at each call, for it is renewed now and then.

        Applications of ours that serve a model from outside `storage` belong to another installation.
        """
        self._http_options = {"host": host, "port": port}
        self._dashboard_host = httpx.URL(dashboard_url).host
        self._token_path = token_path
        self._models = storage / "models"
        self._client = httpx.AsyncClient(base_url=dashboard_url, transport=transport, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def apply(
        self, deployments: Sequence[StoredDeployment], manifests: Mapping[str, str]
    ) -> dict[str, DeploymentStatus]:
        """Make Serve equal to these and say where each is; one that is to go and is gone has no entry.

        `manifests`: sha256 of the manifest of each model version (`name@version`); its replicas then serve no other.
        RayUnreachable: nothing is known. RayRefused: Ray does not take the configuration.
        """
        seen = await self._read()
        live = [deployment for deployment in deployments if deployment.state is not DeploymentState.DELETING]
        wanted = [deployment for deployment in live if not self._why_taken(deployment, seen)]
        configuration = self._configuration(wanted, seen, manifests)
        if configuration != _current(seen):
            await self._write(configuration, seen)
            seen = await self._read()
        statuses = {each.name: self._status(each, seen) for each in deployments}
        return {name: status for name, status in statuses.items() if status is not None}

    async def ours(self) -> set[str]:
        """Names of the applications on Serve that this installation has deployed, wanted or not."""
        seen = await self._read()
        foreign = self._foreign_names(seen)
        return {
            name for name, each in seen["applications"].items() if name not in foreign and each["status"] != "DELETING"
        }

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
            "http_options": self._listening(seen),
            "applications": applications,
        }
        await self._ask("PUT", timeout_s=_WRITE_TIMEOUT_S, document=document)

    async def _ask(self, method: str, *, timeout_s: float, document: Json | None = None) -> httpx.Response:
        try:
            headers = authorization(self._token_path)
            reply = await self._client.request(method, _PATH, json=document, timeout=timeout_s, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RayUnreachable("SERVE_UNREACHABLE", f"Ray Serve did not answer: {error!r}") from error
        if reply.status_code >= 500:
            raise RayUnreachable("SERVE_UNREACHABLE", f"Ray Serve answered {reply.status_code}: {_gist(reply.text)}")
        if reply.status_code in (401, 403):
            raise RayRefused("RAY_TOKEN", f"Ray did not take the token ({reply.status_code}): {reply.text[:200]}")
        if reply.status_code >= 400:
            raise RayRefused("SERVE_REFUSED", f"Ray Serve refused the configuration: {reply.text[:500]}")
        return reply

    def _listening(self, seen: Json) -> Json:
        """Where Serve listens: it keeps what it was started with."""
        options = seen.get("http_options")
        return options if isinstance(options, dict) else self._http_options

    def _endpoint(self, name: str, seen: Json) -> str:
        options = self._listening(seen)
        host = self._dashboard_host if options["host"] in EVERY_INTERFACE else options["host"]
        return f"http://{host}:{options['port']}/{name}/v1"

    def _status(self, deployment: StoredDeployment, seen: Json) -> DeploymentStatus | None:
        endpoint = self._endpoint(deployment.name, seen)
        foreign = deployment.name in self._foreign_names(seen)
        application = None if foreign else seen["applications"].get(deployment.name)
        if deployment.state is DeploymentState.DELETING:
            return DeploymentStatus(DeploymentState.DELETING, "being taken down", endpoint) if application else None
        if words := self._why_taken(deployment, seen):
            return DeploymentStatus(DeploymentState.FAILED, words, endpoint)
        if application is None:
            return DeploymentStatus(DeploymentState.PENDING, "Ray Serve does not show it yet", endpoint)
        state = _STATES.get(application["status"], DeploymentState.DEPLOYING)
        if state in (DeploymentState.DEPLOYING, DeploymentState.READY) and not _any_proxy_is_up(seen):
            port = self._listening(seen)["port"]
            words = f"Serve's HTTP proxy is not up yet; is port {port} taken by something else?"
            return DeploymentStatus(DeploymentState.DEPLOYING, words, endpoint)
        return DeploymentStatus(state, _message(state, deployment, application), endpoint)

    def _configuration(self, wanted: Sequence[StoredDeployment], seen: Json, manifests: Json) -> list[Json]:
        """The whole configuration, by name: ours as stored, others as they are."""
        others = [each for each in _current(seen) if not self._is_ours(each)]
        ours = [_application(each, manifests.get(each.resolved_model)) for each in wanted]
        return sorted([*others, *ours], key=lambda each: str(each["name"]))

    def _is_ours(self, config: Json | None) -> bool:
        """By configuration: applications deployed from code have none."""
        if not config or config["import_path"] != IMPORT_PATH:
            return False
        return Path(str(config.get("args", {}).get("model_path", ""))).is_relative_to(self._models)

    def _foreign_names(self, seen: Json) -> set[str]:
        """Applications that somebody else deployed."""
        applications: Mapping[str, Json] = seen["applications"]
        return {name for name, each in applications.items() if not self._is_ours(each.get("deployed_app_config"))}

    def _why_taken(self, deployment: StoredDeployment, seen: Json) -> str:
        """Why a deployment cannot be beside the applications of others; empty where it can."""
        foreign = self._foreign_names(seen)
        if deployment.name in foreign:
            return "Ray Serve has an application of this name that is not ours; it is left alone"
        prefix = f"/{deployment.name}"
        owner = next((name for name in sorted(foreign) if _route_prefix(seen["applications"][name]) == prefix), None)
        return f"{prefix} belongs to {owner!r} on Ray Serve, which is not ours; take another name" if owner else ""


def _application(deployment: StoredDeployment, manifest_sha256: str | None) -> dict[str, object]:
    """One deployment as Serve is told of it."""
    model_name, _, version = deployment.resolved_model.rpartition("@")
    required = {"manifest_sha256": manifest_sha256} if manifest_sha256 else {}
    return {
        "name": deployment.name,
        "route_prefix": f"/{deployment.name}",
        "import_path": IMPORT_PATH,
        "args": {
            "name": deployment.name,
            "model_path": deployment.path,
            "model_name": model_name,
            "version": int(version),
            **required,
            "num_replicas": deployment.num_replicas,
            "cpus_per_replica": deployment.cpus_per_replica,
            "gpus_per_replica": deployment.gpus_per_replica,
        },
    }


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


def _message(state: DeploymentState, deployment: StoredDeployment, application: Json) -> str:
    """One sentence on where it stands; Ray's own words where it has any."""
    if state is DeploymentState.READY:
        return f"{deployment.resolved_model} answers requests"
    details = [str(each.get("message") or "") for each in application.get("deployments", {}).values()]
    words = next((text for text in [*details, str(application.get("message") or "")] if text.strip()), "")
    if state is DeploymentState.FAILED:
        return f"Ray gave up on it: {_gist(words)}" if words else "Ray gave up on it"
    return f"starting: {_gist(words)}" if words else "replicas are starting"


def _gist(words: str) -> str:
    """The exception a traceback ends with, else the first line."""
    errors = _EXCEPTION_LINE.findall(words)
    return str(errors[-1] if errors else words.strip().partition("\n")[0])[:500]
