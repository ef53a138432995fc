"""Callers of a control plane: many at once that make jobs, one that lists, many that watch. Prints one JSON object.

`python -m benchmarks.control.load ADDRESS TOKEN_FILE TRAIN_FILE create|list|watch N COUNT`
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from cluster.client import AsyncAthanorClient

_PER_CONNECTION = 100
_PATIENCE_S = 120.0


def manifest(train: str, name: str = "load", **schedule: Any) -> dict[str, Any]:
    """A small job that is right, held back: only its acceptance is measured."""
    spec = {
        "student": {"config": {"model_type": "llama", "hidden_size": 64}},
        "data": {"train": train, "format": "prompt_completion"},
        "training": {"max_steps": 5},
        "schedule": schedule or {"hold_until": "2999-01-01T00:00:00Z"},
    }
    return {"kind": "FineTune", "metadata": {"name": name}, "spec": spec}


async def create(address: str, token: str, train: str, num_clients: int, count: int) -> dict[str, Any]:
    """Each client with a connection of its own, one request after the other; `count` in all."""
    document = manifest(train)

    async def client() -> list[float]:
        seconds = []
        async with AsyncAthanorClient(address, token=token) as caller:
            await caller.get_caller()
            await ready.wait()
            for _ in range(count // num_clients):
                began = time.perf_counter()
                await caller.create_job(document, request_id=str(uuid.uuid4()))
                seconds.append(time.perf_counter() - began)
        return seconds

    ready = asyncio.Event()
    clients = [asyncio.create_task(client()) for _ in range(num_clients)]
    await asyncio.sleep(1.0)
    began = time.perf_counter()
    ready.set()
    taken = sorted(one for each in await asyncio.gather(*clients) for one in each)
    return figures(taken) | {"rate": len(taken) / (time.perf_counter() - began)}


async def list_pages(address: str, token: str, train: str, page: int, count: int) -> dict[str, Any]:
    """The newest page, and a filtered one, by turns."""
    del train
    taken: dict[str, list[float]] = {"newest": [], "filtered": []}
    async with AsyncAthanorClient(address, token=token) as caller:
        for _ in range(count):
            for name, words in (("newest", ""), ("filtered", 'state = "CANCELLED" AND priority >= 500')):
                began = time.perf_counter()
                found = [job async for job in caller.list_jobs(filter=words, limit=page)]
                taken[name].append(time.perf_counter() - began)
                assert len(found) == page, f"{len(found)} jobs on a page of {page}"
    return {name: figures(sorted(seconds)) for name, seconds in taken.items()}


async def watch(address: str, token: str, train: str, num_watchers: int, count: int) -> dict[str, Any]:
    """From the call that makes a job until each watcher has heard of it."""
    heard = [asyncio.Event() for _ in range(num_watchers)]
    expected = ""
    connections = [
        AsyncAthanorClient(address, token=token, patience_s=_PATIENCE_S)
        for _ in range(-(-num_watchers // _PER_CONNECTION))
    ]

    async def follow(at: int, since: int) -> None:
        async for change in connections[at // _PER_CONNECTION].watch_jobs(after_resource_version=since):
            if change.job.uid == expected:
                heard[at].set()

    first = await connections[0].create_job(manifest(train))
    watchers = [asyncio.create_task(follow(at, first.resource_version)) for at in range(num_watchers)]
    taken = []
    for _ in range(count):
        await asyncio.sleep(1.0)
        for event in heard:
            event.clear()
        began = time.perf_counter()
        job = await connections[0].create_job(manifest(train))
        expected = job.uid
        await connections[0].update_job(job.uid, priority=501)
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in heard)), _PATIENCE_S)
        taken.append(time.perf_counter() - began)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    for connection in connections:
        await connection.close()
    return figures(sorted(taken))


def figures(taken: list[float]) -> dict[str, Any]:
    """Milliseconds of sorted seconds."""
    return {"p50_ms": _share(taken, 0.5) * 1e3, "p99_ms": _share(taken, 0.99) * 1e3, "calls": len(taken)}


def _share(taken: list[float], share: float) -> float:
    return taken[min(int(len(taken) * share), len(taken) - 1)]


WORK = {"create": create, "list": list_pages, "watch": watch}


def main() -> None:
    address, token_file, train, what, num, count = sys.argv[1:]
    token = Path(token_file).read_text().strip()
    print(json.dumps(asyncio.run(WORK[what](address, token, train, int(num), int(count)))))


if __name__ == "__main__":
    main()
