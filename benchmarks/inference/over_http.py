"""What gateway, Serve handle and replica add to the engine: the same requests in this process, and over HTTP.

A Ray of its own on this machine, one replica, one gateway without tokens. Answers stream in both; the clients are ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

from benchmarks.inference.timing import Timing, summary
from benchmarks.inference.workload import Request, num_tokens, requests
from serving.engine import Engine, GenerationRequest, Sampling

_NAME, _APP, _MODEL = "bench", "bench--r1", "bench@1"
_WAIT_S = 120
Ask = Callable[[Request], Awaitable[Timing]]


@contextmanager
def endpoint(root: Path, port: int) -> Generator[str]:
    """Base URL of a gateway before one replica."""
    from serving.app import build, build_gateway

    backend = {"app": _APP, "model": _MODEL, "revision": 1, "weight": 10_000}
    table = {"routes": [{"name": _NAME, "backends": [backend]}], "auth": "none"}
    options = {"name": _NAME, "revision": 1, "model_path": str(root), "model_name": "bench", "version": 1}
    with tempfile.TemporaryDirectory(prefix="bench-ray-") as storage:
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(build(options), name=_APP, route_prefix=None)
            serve.run(build_gateway({"storage": storage}), name="athanor", route_prefix="/")
            serve.get_app_handle("athanor").reconfigure.remote(table).result(timeout_s=_WAIT_S)
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


async def over_http(client: httpx.AsyncClient, request: Request) -> Timing:
    body = {
        "model": _NAME,
        "prompt": list(request.prompt_ids),
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "stream": True,
    }
    began, seen = time.perf_counter(), []
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        reply.raise_for_status()
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                seen.append(time.perf_counter())
    return Timing.of(began, seen)


async def in_process(engine: Engine, request: Request) -> Timing:
    began, seen = time.perf_counter(), []
    async for _ in engine.submit(GenerationRequest(request.prompt_ids, request.max_tokens, Sampling(temperature=0))):
        seen.append(time.perf_counter())
    return Timing.of(began, seen)


async def stages(ask: Ask, wanted: Sequence[Request], clients: int) -> dict[str, Any]:
    """One client alone, and so many at once."""
    for request in requests(4, seed=1):
        await ask(request)
    alone = [await ask(request) for request in wanted]
    waiting, began = list(wanted), time.perf_counter()

    async def client() -> None:
        while waiting:
            await ask(waiting.pop())

    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - began
    whole = [each.first + sum(each.between) for each in alone]
    return {
        "alone": summary(alone),
        "seconds_per_request": sum(whole) / len(whole),
        "tokens_per_s": num_tokens(wanted) / seconds,
    }


async def http_stages(url: str, wanted: Sequence[Request], clients: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=_WAIT_S, limits=limits, trust_env=False) as client:
        return await stages(lambda request: over_http(client, request), wanted, clients)


def overhead(direct: dict[str, Any], http: dict[str, Any]) -> dict[str, float]:
    """Milliseconds to the first token and of a whole answer; speed with many clients as a share of the engine's."""
    return {
        "ttft_p50_ms": http["alone"]["ttft_ms"]["p50"] - direct["alone"]["ttft_ms"]["p50"],
        "request_ms": (http["seconds_per_request"] - direct["seconds_per_request"]) * 1e3,
        "tokens_http_to_direct": http["tokens_per_s"] / direct["tokens_per_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, required=True)
    chosen = parser.parse_args()
    wanted = requests(chosen.requests)
    with endpoint(chosen.root.resolve(), chosen.port) as url:
        http = asyncio.run(http_stages(url, wanted, chosen.clients))
    direct = asyncio.run(direct_stages(chosen.root, wanted, chosen.clients))
    print(json.dumps({"direct": direct, "http": http, "overhead": overhead(direct, http)}))


async def direct_stages(root: Path, wanted: Sequence[Request], clients: int) -> dict[str, Any]:
    from serving.loading import load
    from serving.model_dir import verify

    engine = load(verify(root)).engine
    assert engine is not None
    try:
        return await stages(lambda request: in_process(engine, request), wanted, clients)
    finally:
        engine.close()


if __name__ == "__main__":
    main()
