"""Our side in one process: the engine with clients that read its streams, as an API in the same process would.

Stages: every client asks again as soon as it has its answer (for each number of clients); one client alone with pauses
(an idle server); Poisson arrivals at half of what the most clients got.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.inference.timing import Timing, summary
from benchmarks.inference.workload import Request, arrivals, num_tokens, requests
from benchmarks.measure import memory_mib
from serving.engine import Engine, GenerationRequest, Sampling


@dataclass
class Clients:
    """Who asks, and what they saw."""

    engine: Engine
    timings: list[Timing] = field(default_factory=list)

    async def ask(self, request: Request) -> None:
        began = time.perf_counter()
        stream = self.engine.submit(GenerationRequest(request.prompt_ids, request.max_tokens, Sampling(temperature=0)))
        seen, count = [], 0
        async for delta in stream:
            count += delta.num_tokens
            seen.append(time.perf_counter())
        assert count == request.max_tokens
        self.timings.append(Timing.of(began, seen))

    async def closed(self, wanted: Sequence[Request], clients: int) -> float:
        """So many clients, one request each at a time; seconds for all."""
        waiting = list(reversed(wanted))

        async def client() -> None:
            while waiting:
                await self.ask(waiting.pop())

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began

    async def at(self, wanted: Sequence[Request], times: Sequence[float]) -> None:
        """Each request at its time, whatever became of the others."""

        async def later(request: Request, seconds: float) -> None:
            await asyncio.sleep(seconds)
            await self.ask(request)

        await asyncio.gather(*(later(*each) for each in zip(wanted, times, strict=True)))


async def measure(engine: Engine, clients: Sequence[int], count: int) -> dict[str, Any]:
    await Clients(engine).closed(requests(max(clients), seed=1), max(clients))  # warm
    found: dict[str, Any] = {"clients": {}}
    wanted = requests(count)
    for number in clients:
        some = wanted[: max(8, count * number // max(clients))]
        stage = Clients(engine)
        seconds = await stage.closed(some, number)
        found["clients"][str(number)] = {"tokens_per_s": num_tokens(some) / seconds, **summary(stage.timings)}
    requests_per_s = found["clients"][str(max(clients))]["tokens_per_s"] * count / num_tokens(wanted)
    idle, half = Clients(engine), Clients(engine)
    for request in wanted[: max(20, count // 4)]:
        await asyncio.sleep(0.02)
        await idle.ask(request)
    await half.at(wanted, arrivals(count, requests_per_s / 2))
    return {**found, "idle": summary(idle.timings), "half_load": summary(half.timings)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", required=True)
    parser.add_argument("--requests", type=int, required=True)
    chosen = parser.parse_args()
    from serving.loading import load
    from serving.model_dir import verify

    loaded = load(verify(chosen.root))
    assert loaded.engine is not None
    before = memory_mib("VmRSS")
    found = asyncio.run(measure(loaded.engine, chosen.clients, chosen.requests))
    loaded.engine.close()
    print(json.dumps({**found, "peak_mib": memory_mib(), "loaded_mib": before}))


if __name__ == "__main__":
    main()
