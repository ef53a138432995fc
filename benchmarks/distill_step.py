"""One step of distillation, ours against TRL's GKDTrainer: tokens per second, peak memory, share of the matmul ceiling.

Every repetition runs each side in a fresh process, one after the other, so that drift of the machine hits all of them.
Ratios are taken within a repetition. A table goes to stderr, one JSON object is the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure
from benchmarks.distillation import workload as work
from benchmarks.distillation.step import (
    LENGTH,
    ROWS,
    STUDENT,
    TEACHER,
    TOKENS,
    ceiling_share,
    flops_per_token,
    gemm_rate,
    price_bound,
    products,
)
from benchmarks.measure import Spread

PEERS = measure.ROOT / ".bench-peers"
BF16_ROUNDING = 2.0**-8
"""Relative: two losses further apart than this are not the same loss."""
_AS_FAST = 0.98
"""DeepSpeed is the headline, being a job's default, if it is at least so fast as the plain torch engine."""
Run = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One process to be measured."""

    module: str
    arguments: tuple[str, ...] = ()
    path: tuple[Path, ...] = ()


def sides(cores: int) -> dict[str, Side]:
    ours, actors, trl = (f"benchmarks.distillation.{name}" for name in ("ours", "actors", "peer_trl"))
    half = max(1, cores // 2)
    found = {
        "process_deepspeed": Side(ours, ("--engine", "deepspeed")),
        "trl": Side(trl, (), (PEERS,)),
        "process_torch": Side(ours, ("--engine", "torch")),
        f"actors_{half}+{half}": Side(actors, ("--threads", str(half))),
        "supervised_deepspeed": Side(ours, ("--engine", "deepspeed", "--supervised")),
        "trl_checkpointing": Side(trl, ("--gradient-checkpointing",), (PEERS,)),
        "supervised_torch": Side(ours, ("--engine", "torch", "--supervised")),
    }
    return found | ({f"actors_{cores}+{cores}": Side(actors, ("--threads", str(cores)))} if cores > half else {})


def main() -> None:
    chosen = _arguments()
    with tempfile.TemporaryDirectory(prefix="athanor-bench-") as directory:
        root = Path(directory)
        bench = _begin(root, chosen.warmup, chosen.steps)
        if chosen.profile:
            _profile(bench, chosen.engine)
            return
        wanted = [name for name in sides(_cores()) if not chosen.sides or name.startswith(tuple(chosen.sides))]
        before = measure.machine()
        runs = bench.repeat(wanted, chosen.repetitions)
    document = summary(runs, before)
    print(table(document), file=sys.stderr)
    told = measure.medians_and_spread(document)
    if chosen.save:
        print(f"kept in {measure.save('distill_step', {**told, 'runs': runs})}", file=sys.stderr)
    if chosen.json:
        print(json.dumps(told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    parser.add_argument("--save", action="store_true", help="also under benchmarks/results/, with every repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=4, help="steps of each run before the clock")
    parser.add_argument("--steps", type=int, default=12, help="steps of each run on the clock")
    parser.add_argument("--sides", nargs="+", metavar="NAME", help=f"only those that begin so: {', '.join(sides(2))}")
    parser.add_argument("--profile", action="store_true", help="instead: torch's profile of our step, on stderr")
    parser.add_argument("--engine", choices=["deepspeed", "torch"], default="deepspeed", help="of the profile")
    chosen = parser.parse_args()
    if min(chosen.repetitions, chosen.warmup, chosen.steps) < 1:
        parser.error("--repetitions, --warmup and --steps are at least 1")
    needs_peer = not chosen.profile and (not chosen.sides or any(name.startswith("trl") for name in chosen.sides))
    if needs_peer and not (PEERS / "trl").is_dir():
        parser.error("TRL is not installed beside the environment: `make bench` does that, or leave it out by --sides")
    return chosen


def _begin(root: Path, warmup: int, steps: int) -> Bench:
    """The models are made in a process of their own too, so that this one stays small and loads no torch."""
    bench = Bench(work.Workload(root / "work"), root / "sides.log")
    counts = ("--warmup", str(warmup), "--steps", str(steps))
    bench.run(Side("benchmarks.distillation.workload"), *counts)
    return bench


@dataclass(frozen=True)
class Bench:
    """Runs sides on one workload."""

    workload: work.Workload
    log: Path

    def repeat(self, names: Sequence[str], times: int) -> dict[str, list[Run]]:
        """Every side once in each repetition, and the ceiling beside them."""
        known, runs = sides(_cores()), {name: list[Run]() for name in [*names, "matmul"]}
        for repetition in range(times):
            turn = names if repetition % 2 == 0 else list(reversed(names))
            runs["matmul"].append(measure.run_side("benchmarks.distillation.matmul", log=self.log))
            for name in turn:
                runs[name].append(self.run(known[name]))
                speed = TOKENS / runs[name][-1]["seconds_per_step"]
                print(f"repetition {repetition + 1}/{times}  {name:22s} {speed:7.0f} tokens/s", file=sys.stderr)
        return runs

    def run(self, side: Side, *more: str) -> Run:
        arguments = (str(self.workload.root), *side.arguments, *more)
        return measure.run_side(side.module, *arguments, path=side.path, log=self.log)


def summary(runs: dict[str, list[Run]], machine: dict[str, Any]) -> dict[str, Any]:
    """All figures of a finished measurement; those of sides that were left out are missing."""
    speeds = {
        name: [TOKENS / one["seconds_per_step"] for one in found] for name, found in runs.items() if _is_side(name)
    }
    ours, trl, actors = _headline(speeds), _fastest(speeds, "trl"), _fastest(speeds, "actors")
    flops, rates = flops_per_token(TEACHER, STUDENT), _gemm_rates(runs["matmul"])
    document: dict[str, Any] = {
        "benchmark": "distill_step",
        "ours": _figures(ours, runs, speeds),
        "trl": _figures(trl, runs, speeds),
        "ratio": _ratios(runs, speeds, ours, trl, actors),
        "target": {
            "tokens_per_s": 3.0,
            "peak_memory": 0.45,
            "actors_to_process": 0.85,
            "taught_to_supervised": measure.rounded(price_bound(TEACHER, STUDENT)),
            "ceiling_share": 0.5,
        },
        "gemm_gflops": _spread([rate / 1e9 for rate in rates]),
        "loss": _losses(runs, ours, trl),
        "sides": {name: _figures(name, runs, speeds) for name in speeds},
        "work": _work(flops),
        "machine": machine,
        "versions": _versions(),
        "n": len(rates),
    }
    if ours is not None:
        shares = [ceiling_share(speed, flops, rate) for speed, rate in zip(speeds[ours], rates, strict=True)]
        document["ceiling_share"] = _spread(shares)
    return document


def _is_side(name: str) -> bool:
    return name != "matmul"


def _headline(speeds: dict[str, list[float]]) -> str | None:
    found = {name: statistics.median(many) for name, many in speeds.items() if name.startswith("process_")}
    if not found:
        return None
    fastest = max(found, key=lambda name: found[name])
    default = "process_deepspeed"
    return default if found.get(default, 0.0) >= _AS_FAST * found[fastest] else fastest


def _fastest(speeds: dict[str, list[float]], start: str) -> str | None:
    """A peer, or a way to share the cores, is measured at its best."""
    found = {name: statistics.median(many) for name, many in speeds.items() if name.startswith(start)}
    return max(found, key=lambda name: found[name]) if found else None


def _figures(name: str | None, runs: dict[str, list[Run]], speeds: dict[str, list[float]]) -> dict[str, Any] | None:
    if name is None:
        return None
    peaks = [one["peak_mib"] for one in runs[name]]
    return {"side": name, "tokens_per_s": _spread(speeds[name]), "peak_mib": _peaks(peaks)}


def _peaks(peaks: Sequence[Any]) -> dict[str, Any]:
    """Of one process, or of each by its name."""
    if isinstance(peaks[0], dict):
        return {name: _spread([one[name] for one in peaks]) for name in peaks[0]}
    return _spread(peaks)


def _ratios(
    runs: dict[str, list[Run]],
    speeds: dict[str, list[float]],
    ours: str | None,
    trl: str | None,
    actors: str | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if ours is None:
        return found
    supervised = ours.replace("process", "supervised")
    if trl is not None:
        found["tokens_per_s"] = measure.ratios(speeds[ours], speeds[trl]).document()
        mine, theirs = ([one["peak_mib"] for one in runs[name]] for name in (ours, trl))
        found["peak_memory"] = measure.ratios(mine, theirs).document()
    if actors is not None:
        found["actors_to_process"] = measure.ratios(speeds[actors], speeds[ours]).document()
    if supervised in speeds:
        found["taught_to_supervised"] = measure.ratios(speeds[supervised], speeds[ours]).document()
    return found


def _losses(runs: dict[str, list[Run]], ours: str | None, trl: str | None) -> dict[str, Any] | None:
    """Of the first steps, from equal weights on equal batches."""
    if ours is None or trl is None:
        return None
    mine, theirs = runs[ours][0]["losses"], runs[trl][0]["losses"]
    apart = max(abs(one - other) / abs(other) for one, other in zip(mine, theirs, strict=True))
    return {"ours": mine, "trl": theirs, "relative_difference": apart, "equal_within_bf16": apart <= BF16_ROUNDING}


def _gemm_rates(runs: Sequence[Run]) -> list[float]:
    step = products(TEACHER, STUDENT, TOKENS)
    return [gemm_rate(step, one["seconds"]) for one in runs]


def _work(flops: int) -> dict[str, Any]:
    return {
        "batch": f"{ROWS} x {LENGTH} tokens",
        "teacher_parameters": TEACHER.num_multiplied,
        "student_parameters": STUDENT.num_multiplied,
        "counted": "linear weights and head, without the embedding's lookup and attention's own products",
        "flops_per_token": flops,
    }


def _versions() -> dict[str, str]:
    ours = measure.versions("torch", "transformers", "deepspeed", "ray")
    peers = {path.name.split("-")[0]: path.name.split("-")[1] for path in PEERS.glob("*.dist-info")}
    return ours | {name: version.removesuffix(".dist") for name, version in peers.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return Spread.of(values).document()


def table(document: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'side':24s}{'tokens/s':>10s}{'spread':>16s}{'peak MiB':>14s}"]
    for name, figures in document["sides"].items():
        speed, peak = figures["tokens_per_s"], figures["peak_mib"]
        spread = f"{speed['min']:.0f}-{speed['max']:.0f}"
        shown = (
            f"{peak['median']:.0f}" if "median" in peak else "+".join(f"{one['median']:.0f}" for one in peak.values())
        )
        lines.append(f"{name:24s}{speed['median']:10.0f}{spread:>16s}{shown:>14s}")
    found = {
        **document["ratio"],
        **({"ceiling_share": document["ceiling_share"]} if "ceiling_share" in document else {}),
    }
    lines.append(f"{'ratio':24s}{'median':>10s}{'spread':>16s}{'target':>14s}")
    for name, figures in found.items():
        spread, target = f"{figures['min']:.3g}-{figures['max']:.3g}", document["target"][name]
        lines.append(f"{name:24s}{figures['median']:10.3g}{spread:>16s}{target:>14.3g}")
    lines.append(f"matrix products {document['gemm_gflops']['median']:.0f} GFLOP/s; n = {document['n']}")
    if document["loss"] is not None:
        lines.append(f"losses apart by {document['loss']['relative_difference']:.2g} of their size")
    return "\n".join(lines)


def _profile(bench: Bench, engine: str) -> None:
    bench.run(sides(_cores())[f"process_{engine}"], "--profile")
    print(bench.log.read_text(), file=sys.stderr)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
