"""Ray, as far as the control plane needs it: start a job under an id, look at it, stop it, over the Jobs REST API.

Tells "cannot be seen" (RayUnreachable) from "said no" (RayRefused); decides nothing from either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from cluster.capacity import Resources
from cluster.errors import RayRefused, RayUnreachable
from cluster.policy import View
from cluster.ray_state import ALIVE_ACTORS, ENDED, ListedJob, listed_jobs, sum_reserved
from cluster.settings import Settings

_TIMEOUT = httpx.Timeout(15.0, connect=3.0)
_MOST_ROWS = 10_000


INSTALLATION = "athanor.installation"
"""Key of a submission's metadata that says which installation a job belongs to."""


@dataclass(frozen=True)
class Submission:
    """One Ray job."""

    ray_job_id: str
    entrypoint: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RayJob:
    """What Ray says of a job."""

    view: View
    words: str = ""


@dataclass(frozen=True)
class RayNode:
    """A machine of the cluster."""

    id: str
    address: str
    total: Resources
    is_alive: bool = True
    is_head: bool = False


class Launcher(Protocol):
    """What the reconciler needs of Ray. Every method may raise RayUnreachable."""

    async def version(self) -> str:
        """Ray's version: the cheapest proof that it can be seen."""

    async def nodes(self) -> list[RayNode]:
        """All machines that Ray knows of, the head first."""

    async def reserved(self) -> Mapping[str, Resources]:
        """Node id -> what placement groups and actors have reserved there, whoever started them."""

    async def jobs(self) -> list[ListedJob]:
        """All jobs that were submitted to this Ray and that it still knows."""

    async def look(self, ray_job_id: str) -> RayJob:
        """UNKNOWN, ALIVE or ENDED."""

    async def submit(self, submission: Submission) -> None:
        """Start it. Once, however often it is asked with the same id. RayRefused when Ray says no."""

    async def stop(self, ray_job_id: str) -> None:
        """Have it stopped; fine when it has ended or is unknown."""


class RayLauncher:
    """The Jobs REST API of Ray's dashboard, with Ray's bearer token where that is on."""

    def __init__(self, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._token_path = settings.token_file
        self._url = settings.ray_dashboard_url.rstrip("/")
        # Proxies of the environment are for the world outside, never for the cluster's own dashboard.
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False, transport=transport)

    async def close(self) -> None:
        await self._client.aclose()

    async def version(self) -> str:
        return str(_json(await self._call("GET", "/api/version"))["ray_version"])

    async def nodes(self) -> list[RayNode]:
        """Ray's state API has no pages, only a limit; what it left out is told, and then nothing is known."""
        document = _json(await self._call("GET", f"/api/v0/nodes?limit={_MOST_ROWS}&detail=false"))
        try:
            listing = document["data"]["result"]
            rows = listing["result"]
            is_whole = len(rows) == listing["num_after_truncation"] and not listing.get("partial_failure_warning")
            found = [_node(row) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            words = document.get("msg") or repr(error)
            raise RayUnreachable("RAY_UNREACHABLE", f"Ray's list of nodes cannot be read: {words}") from error
        if not is_whole:
            raise RayUnreachable("RAY_UNREACHABLE", "Ray's list of nodes is not whole; it is asked for again")
        return sorted(found, key=lambda node: (not node.is_head, node.address, node.id))

    async def reserved(self) -> Mapping[str, Resources]:
        groups = await self._call("GET", f"/api/v0/placement_groups?detail=1&limit={_MOST_ROWS}")
        actors = await self._call("GET", f"/api/v0/actors?detail=1&{ALIVE_ACTORS}&limit={_MOST_ROWS}")
        try:
            return sum_reserved(*(_json(answer)["data"]["result"]["result"] for answer in (groups, actors)))
        except (KeyError, TypeError, ValueError) as error:
            raise RayUnreachable("RAY_UNREACHABLE", f"what Ray says of its nodes cannot be read: {error!r}") from error

    async def jobs(self) -> list[ListedJob]:
        rows = _document(await self._call("GET", "/api/jobs/"))
        try:
            return listed_jobs(rows)
        except (KeyError, TypeError, AttributeError) as error:
            raise RayUnreachable("RAY_UNREACHABLE", f"Ray's list of jobs cannot be read: {error!r}") from error

    async def look(self, ray_job_id: str) -> RayJob:
        answer = await self._call("GET", f"/api/jobs/{ray_job_id}")
        if _says_unknown(answer):
            return RayJob(View.UNKNOWN)
        job = _json(answer)
        view = View.ENDED if job.get("status") in ENDED else View.ALIVE
        return RayJob(view, _last_line(str(job.get("message") or "")))

    async def submit(self, submission: Submission) -> None:
        body = {
            "submission_id": submission.ray_job_id,
            "entrypoint": submission.entrypoint,
            "metadata": dict(submission.metadata),
            "runtime_env": {"env_vars": dict(submission.env)} if submission.env else {},
            "entrypoint_num_cpus": 0,
        }
        answer = await self._call("POST", "/api/jobs/", body)
        # Ray answers a repeated id with an error and a traceback; for us the job is there, which is what was asked.
        if answer.is_error and "already exists" not in answer.text:
            _raise_refused(answer)

    async def stop(self, ray_job_id: str) -> None:
        answer = await self._call("POST", f"/api/jobs/{ray_job_id}/stop")
        if answer.is_error and not _says_unknown(answer):
            _raise_refused(answer)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            answer = await self._client.request(
                method, self._url + path, json=body, headers=authorization(self._token_path)
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error) or type(error).__name__
            raise RayUnreachable("RAY_UNREACHABLE", f"Ray at {self._url} cannot be reached: {why}") from error
        if answer.status_code in (401, 403):
            words = f"Ray at {self._url} does not take the token of {self._token_path}; see RAY_AUTH_TOKEN_PATH"
            raise RayUnreachable("RAY_UNAUTHORIZED", words)
        return answer


def authorization(token_path: Path | None) -> dict[str, str]:
    """The header that Ray wants, with the token that the file holds now."""
    if token_path is None:
        return {}
    try:
        return {"Authorization": f"Bearer {token_path.read_text().strip()}"}
    except (OSError, UnicodeDecodeError) as error:
        words = f"Ray's token cannot be read: {error}; see RAY_AUTH_TOKEN_PATH"
        raise RayUnreachable("RAY_TOKEN_MISSING", words) from error


def _node(row: Mapping[str, Any]) -> RayNode:
    total = row["resources_total"] or {}
    return RayNode(
        id=str(row["node_id"]),
        address=str(row["node_ip"]),
        total=Resources(float(total.get("CPU", 0.0)), float(total.get("GPU", 0.0))),
        is_alive=row["state"] == "ALIVE",
        is_head=bool(row["is_head_node"]),
    )


def _says_unknown(answer: httpx.Response) -> bool:
    """Only Ray's own words count: any other 404 comes from something that is not Ray's job API."""
    return answer.status_code == 404 and "does not exist" in answer.text


def _json(answer: httpx.Response) -> dict[str, Any]:
    return dict(_document(answer))


def _document(answer: httpx.Response) -> Any:
    if answer.is_error:
        raise RayUnreachable(
            "RAY_UNREACHABLE", f"Ray's dashboard answered {answer.status_code}: {_last_line(answer.text)}"
        )
    try:
        return answer.json()
    except ValueError as error:
        raise RayUnreachable("RAY_UNREACHABLE", f"what answers at {answer.url} is not Ray's dashboard") from error


def _raise_refused(answer: httpx.Response) -> None:
    """Ray reports trouble of its own as 5xx and wrong requests as 4xx; only the latter is a no."""
    words = f"Ray answered {answer.status_code}: {_last_line(answer.text)}"
    if answer.status_code >= 500 or answer.status_code in (404, 408, 429):
        raise RayUnreachable("RAY_UNREACHABLE", words)
    raise RayRefused("RAY_REFUSED", words)


def _last_line(text: str) -> str:
    """Of a traceback the line that matters, never more than people want to read."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
