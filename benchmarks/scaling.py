"""How memory and time of distillation grow: with vocabulary and tokens, payloads and top-k, workers, shards, prefetch.

The loss alone is measured at the sizes of large models; workers, shards and prefetch by whole jobs on Ray, whose
processes share the cores of this machine, so that more of them cannot be faster here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Spread, machine, medians_and_spread, rounded, run_side, save, versions

VOCABULARIES = (16_384, 65_536, 262_144)
TOKENS = (1024, 4096)
JOBS: dict[str, dict[str, Any]] = {
    "default": {},
    "prefetch 0": {"training": {"prefetch_depth": 0}},
    "prefetch 1": {"training": {"prefetch_depth": 1}},
    "prefetch 4": {"training": {"prefetch_depth": 4}},
    "workers 2": {"resources": {"student": {"workers": 2}}},
    "shards 2": {"shards": 2},
    "shards 4": {"shards": 4},
    "replicas 2": {"replicas": 2},
    "full_logits": {"objective": {"teacher_payload": "full_logits"}},
    "top 8": {"objective": {"teacher_payload": "topk_logits", "loss_top_k": 8}},
    "top 64": {"objective": {"teacher_payload": "topk_logits", "loss_top_k": 64}},
    "top 512": {"objective": {"teacher_payload": "topk_logits", "loss_top_k": 512}},
}
"""Changes of the job; `shards` and `replicas` are the teacher's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    parser.add_argument("--save", action="store_true", help="also under benchmarks/results/")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", choices=["loss", "jobs"])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log"
        found: dict[str, Any] = {"benchmark": "scaling", "n": chosen.repetitions}
        if chosen.only != "jobs":
            found["loss"] = _loss(chosen.repetitions, log)
        if chosen.only != "loss":
            found["jobs"] = _jobs(Path(directory), chosen.repetitions, chosen.steps, log)
    document = medians_and_spread(found) | {"machine": machine(), "versions": versions("torch", "ray", "deepspeed")}
    if chosen.save:
        print(save("scaling", document), file=sys.stderr)
    if chosen.json:
        print(json.dumps(document))


def _loss(repetitions: int, log: Path) -> dict[str, Any]:
    """Peak memory as multiples of both heads, and of what the logits would weigh in float32."""
    found: dict[str, Any] = {}
    for vocabulary in VOCABULARIES:
        for tokens in TOKENS:
            sizes = ["--vocabulary", str(vocabulary), "--tokens", str(tokens)]
            runs = [run_side("benchmarks.distillation.loss_growth", *sizes, log=log) for _ in range(repetitions)]
            name = f"{vocabulary} x {tokens}"
            found[name] = {
                "peak_mib": _spread(runs, "peak_mib"),
                "peak_to_heads": Spread.of([run["peak_mib"] / run["weights_mib"] for run in runs]).document(),
                "peak_to_logits": Spread.of([run["peak_mib"] / run["logits_mib"] for run in runs]).document(),
                "seconds": _spread(runs, "seconds"),
            }
            _say(name, found[name]["peak_mib"]["median"], "MiB", found[name]["seconds"]["median"])
    return found


def _jobs(directory: Path, repetitions: int, steps: int, log: Path) -> dict[str, Any]:
    """Seconds of a step of whole jobs, and as multiples of the default's in the same repetition."""
    workload = directory / "workload"
    run_side("benchmarks.distillation.workload", str(workload), "--warmup", "4", "--steps", str(steps), log=log)
    seconds: dict[str, list[float]] = {name: [] for name in JOBS}
    for _ in range(repetitions):
        for name, changes in JOBS.items():
            text = json.dumps(_spec_changes(workload, changes))
            arguments = [str(workload), "--threads", "1", "--changes", text]
            run = run_side("benchmarks.distillation.actors", *arguments, log=log)
            seconds[name].append(run["seconds_per_step"])
            _say(name, seconds[name][-1], "s a step", seconds[name][-1] / seconds["default"][len(seconds[name]) - 1])
    return {
        name: {
            "seconds_per_step": Spread.of(values).document(),
            "to_default": Spread.of([a / b for a, b in zip(values, seconds["default"], strict=True)]).document(),
        }
        for name, values in seconds.items()
    }


def _spec_changes(workload: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    teacher = {"model": str(workload / "teacher"), "dtype": "bfloat16"}
    own = {name: changes[name] for name in ("shards", "replicas") if name in changes}
    rest = {name: change for name, change in changes.items() if name not in own}
    return {**rest, "teachers": [{**teacher, **own}]}


def _spread(runs: list[dict[str, Any]], name: str) -> dict[str, float]:
    return Spread.of([run[name] for run in runs]).document()


def _say(name: str, value: float, unit: str, other: float) -> None:
    print(f"{name:20s} {rounded(value):>10g} {unit:8s} {rounded(other):>8g}", file=sys.stderr)


if __name__ == "__main__":
    main()
