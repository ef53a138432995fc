"""Serving: our engine against what transformers offers, on the same model and requests. Tokens per second and latency.

Every repetition runs each side in a fresh process, one after the other, so that drift of the machine hits all of them.
Ratios are taken within a repetition. A table goes to stderr, one JSON object is the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from benchmarks.inference import workload as work
from benchmarks.measure import Spread
from cluster.ray_head import free_ports

CLIENTS = (1, 4, 16, 64)
TARGETS = {"tokens_to_static": 0.9, "tokens_to_generate_batch": 5.0, "ttft_p99_half_load_to_idle": 3.0}
PEERS = ("static", "generate_batch", "sequential")
Run = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where the model is, and what is asked."""

    root: Path
    requests: int
    clients: tuple[int, ...]
    few: int
    """Requests of the sides that take so much longer: their speed does not depend on how many there are."""

    def run(self, side: str) -> Run:
        log = self.root / "sides.log"
        if side == "ours":
            clients = map(str, self.clients)
            arguments = ("--clients", *clients, "--requests", str(self.requests))
            return measure.run_side("benchmarks.inference.ours", str(self.root), *arguments, log=log)
        count = self.requests if side == "static" else self.few
        rows, everything = max(self.clients), str(self.requests)
        arguments = ("--way", side, "--rows", str(rows), "--requests", everything, "--of", str(count))
        return measure.run_side("benchmarks.inference.peers", str(self.root), *arguments, log=log)

    def run_http(self) -> Run:
        """What gateway and replica add."""
        [port] = free_ports(1)
        arguments = ("--port", str(port), "--requests", str(self.few))
        return measure.run_side(
            "benchmarks.inference.over_http", str(self.root), *arguments, log=self.root / "sides.log"
        )


def main() -> None:
    chosen = _arguments()
    with tempfile.TemporaryDirectory(prefix="athanor-bench-") as directory:
        bench = Bench(Path(directory), chosen.requests, tuple(chosen.clients), chosen.few)
        model = measure.run_side("benchmarks.inference.workload", directory, log=bench.root / "sides.log")
        before = measure.machine()
        runs = repeat(bench, ["ours", *chosen.sides], chosen.repetitions)
        http = [bench.run_http() for _ in range(chosen.repetitions if chosen.http else 0)]
    document = summary(runs, before, model | {"requests": chosen.requests, "clients": list(bench.clients)})
    document |= {"http": _stage(http)} if http else {}
    told = measure.medians_and_spread(document)
    print(table(document), file=sys.stderr)
    if chosen.save:
        print(f"kept in {measure.save('serving', {**told, 'runs': runs})}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    parser.add_argument("--save", action="store_true", help="also under benchmarks/results/, with every repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--requests", type=int, default=192, help="of one stage; the more clients, the more of them")
    parser.add_argument("--few", type=int, default=24, help="requests of the two slow sides")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--http", action="store_true", help="also what gateway and replica on Ray Serve add")
    parser.add_argument("--sides", nargs="*", choices=PEERS, default=list(PEERS), help="what ours is compared with")
    chosen = parser.parse_args()
    if min(chosen.repetitions, chosen.requests, chosen.few, *chosen.clients) < 1:
        parser.error("--repetitions, --requests, --few and --clients are at least 1")
    return chosen


def repeat(bench: Bench, names: Sequence[str], times: int) -> dict[str, list[Run]]:
    """Every side once, then again; the figures of each repetition."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for repetition in range(times):
        for name in names:
            runs[name].append(bench.run(name))
            speed = most_tokens_per_s(runs[name][-1])
            print(f"repetition {repetition + 1}/{times}  {name:16s} {speed:7.0f} tokens/s", file=sys.stderr)
    return runs


def most_tokens_per_s(run: Run) -> float:
    """At full load: of ours that of the most clients."""
    found = run["clients"][max(run["clients"], key=int)] if "clients" in run else run
    return float(found["tokens_per_s"])


def summary(runs: Mapping[str, Sequence[Run]], machine: Run, model: Run) -> dict[str, Any]:
    """All figures of a finished measurement; those of sides that were left out are missing."""
    ours = runs["ours"]
    speeds = {name: [most_tokens_per_s(run) for run in found] for name, found in runs.items()}
    half, idle = ([run[stage]["ttft_ms"]["p99"] for run in ours] for stage in ("half_load", "idle"))
    ratio = {
        f"tokens_to_{name}": measure.ratios(speeds["ours"], found).document()
        for name, found in speeds.items()
        if name != "ours"
    }
    peers = {name: _figures(found, speeds[name]) for name, found in runs.items() if name != "ours"}
    return {
        "benchmark": "serving",
        "ours": _figures(ours, speeds["ours"])
        | {"clients": {number: _stage([run["clients"][number] for run in ours]) for number in ours[0]["clients"]}}
        | {stage: _stage([run[stage] for run in ours]) for stage in ("idle", "half_load")},
        **peers,
        "ratio": {**ratio, "ttft_p99_half_load_to_idle": measure.ratios(half, idle).document()},
        "target": TARGETS,
        "work": {**model, "prompt_tokens": work.PROMPT_TOKENS, "answer_tokens": work.ANSWER_TOKENS},
        "machine": machine,
        "versions": measure.versions("torch", "transformers"),
        "n": len(ours),
    }


def _figures(found: Sequence[Run], speeds: Sequence[float]) -> dict[str, Any]:
    memory = {name: _spread([run[name] for run in found]) for name in ("peak_mib", "loaded_mib")}
    return {"tokens_per_s": _spread(speeds), **memory}


def _stage(found: Sequence[Any]) -> dict[str, Any]:
    """The same figures over all repetitions, however deep they lie."""
    if not isinstance(found[0], dict):
        return _spread([float(each) for each in found])
    return {name: _stage([each[name] for each in found]) for name in found[0] if name != "n"}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return Spread.of(values).document()


def table(document: Mapping[str, Any]) -> str:
    """For people."""
    lines = [f"{'side':16s}{'tokens/s':>10s}{'spread':>16s}{'peak MiB':>10s}"]
    for name in ("ours", *PEERS):
        if name in document:
            speed, peak = document[name]["tokens_per_s"], document[name]["peak_mib"]["median"]
            lines.append(f"{name:16s}{speed['median']:10.0f}{_ends(speed):>16s}{peak:10.0f}")
    lines.append(f"{'ours':16s}{'tokens/s':>10s}{'ttft p50':>10s}{'p99 ms':>10s}{'next p50':>10s}{'p99 ms':>10s}")
    stages = {f"{number} clients": stage for number, stage in document["ours"]["clients"].items()}
    stages |= {name: document["ours"][name] for name in ("idle", "half_load")}
    for name, stage in stages.items():
        speed = f"{stage['tokens_per_s']['median']:.0f}" if "tokens_per_s" in stage else ""
        times = [stage[kind][cut]["median"] for kind in ("ttft_ms", "inter_token_ms") for cut in ("p50", "p99")]
        lines.append(f"{name:16s}{speed:>10s}" + "".join(f"{time:10.1f}" for time in times))
    lines.append(f"{'ratio':30s}{'median':>10s}{'spread':>16s}{'target':>10s}")
    for name, figures in document["ratio"].items():
        target = f"{TARGETS[name]:g}" if name in TARGETS else ""
        lines.append(f"{name:30s}{figures['median']:10.3g}{_ends(figures):>16s}{target:>10s}")
    for name, figures in document.get("http", {}).get("overhead", {}).items():
        lines.append(f"{'http: ' + name:30s}{figures['median']:10.3g}{_ends(figures):>16s}")
    return "\n".join([*lines, f"n = {document['n']}"])


def _ends(figures: Mapping[str, float]) -> str:
    return f"{figures['min']:.3g}-{figures['max']:.3g}"


if __name__ == "__main__":
    main()
