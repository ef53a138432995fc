"""Ray's own Jobs REST API: submissions of `true`, and how long one takes to run. Prints one JSON object.

`python -m benchmarks.control.ray_rest URL TOKEN_FILE submit|start N COUNT`
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx

from benchmarks.control.load import figures

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LONG = f"{sys.executable} -c 'import time; time.sleep(60)'"


async def submit(client: httpx.AsyncClient, num_clients: int, count: int) -> dict[str, Any]:
    """As our callers do: each one request after the other, `count` in all. Then waits until Ray has run them all."""

    async def one() -> list[float]:
        seconds = []
        for _ in range(count // num_clients):
            began = time.perf_counter()
            answer = await client.post("/api/jobs/", json={"entrypoint": "true", "submission_id": str(uuid.uuid4())})
            answer.raise_for_status()
            seconds.append(time.perf_counter() - began)
        return seconds

    began = time.perf_counter()
    taken = sorted(each for found in await asyncio.gather(*(one() for _ in range(num_clients))) for each in found)
    rate = len(taken) / (time.perf_counter() - began)
    while any(job["status"] not in _ENDED for job in (await client.get("/api/jobs/")).json()):
        await asyncio.sleep(0.5)
    return figures(taken) | {"rate": rate}


async def start(client: httpx.AsyncClient, num_clients: int, count: int) -> dict[str, Any]:
    """From the submission until Ray says RUNNING, one after the other."""
    del num_clients
    taken = []
    for _ in range(count):
        name = str(uuid.uuid4())
        began = time.perf_counter()
        (await client.post("/api/jobs/", json={"entrypoint": _LONG, "submission_id": name})).raise_for_status()
        while (await client.get(f"/api/jobs/{name}")).json()["status"] != "RUNNING":
            await asyncio.sleep(0.02)
        taken.append(time.perf_counter() - began)
        (await client.post(f"/api/jobs/{name}/stop")).raise_for_status()
        while (await client.get(f"/api/jobs/{name}")).json()["status"] not in _ENDED:
            await asyncio.sleep(0.1)
    return figures(sorted(taken))


async def work(url: str, token: str, what: str, num_clients: int, count: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False) as client:
        return await {"submit": submit, "start": start}[what](client, num_clients, count)


def main() -> None:
    url, token_file, what, num_clients, count = sys.argv[1:]
    token = Path(token_file).read_text().strip()
    print(json.dumps(asyncio.run(work(url, token, what, int(num_clients), int(count)))))


if __name__ == "__main__":
    main()
