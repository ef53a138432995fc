"""What every measurement needs: spread over repetitions, machine, versions, peak memory, processes of their own, JSON.

A side of a measurement is `python -m benchmarks....`: it prints one JSON object as its last line. What is measured is
the affair of each benchmark.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
MIB = 1024 * 1024
_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


@dataclass(frozen=True)
class Spread:
    """One figure over repetitions."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def document(self) -> dict[str, float]:
        return {"median": rounded(self.median), "min": rounded(self.low), "max": rounded(self.high), "n": self.n}


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of two sides measured in turn: each repetition against the one beside it, so that drift hits both."""
    return Spread.of([one / other for one, other in zip(above, below, strict=True)])


def medians_and_spread(document: Mapping[str, Any]) -> dict[str, Any]:
    """The same document with plain medians, and under `spread` the ends of each figure by its dotted path."""
    spread: dict[str, list[float]] = {}
    return {**_medians(document, "", spread), "spread": spread}


def _medians(value: Any, path: str, spread: dict[str, list[float]]) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"median", "min", "max", "n"}:
        spread[path] = [value["min"], value["max"]]
        return value["median"]
    return {name: _medians(one, f"{path}.{name}".lstrip("."), spread) for name, one in value.items()}


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def machine() -> dict[str, Any]:
    """What figures depend on, without names of hosts or people."""
    words = _cpu_words()
    flags = set(words.get("flags", "").split())
    return {
        "cpu": words.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(*distributions: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in distributions}


def memory_mib(field: str = "VmHWM") -> float:
    """Of this process: `VmHWM` is the most that was ever resident, `VmRSS` what is now."""
    return status_mib(os.getpid(), field)


def status_mib(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/{pid}/status has no {field}")


class SideFailed(Exception):
    """A measuring process ended badly; its last words are the message."""


def run_side(module: str, *arguments: str, path: Sequence[Path] = (), log: Path) -> dict[str, Any]:
    """The JSON object that `python -m module` prints last; `path` is what it alone can import besides."""
    command = [sys.executable, "-m", module, *arguments]
    with log.open("a") as errors:
        done = subprocess.run(
            command, env=_side_env(path), stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise SideFailed(f"{' '.join(command)} ended with {done.returncode}\n{tail}")
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def save(name: str, document: Mapping[str, Any]) -> Path:
    """The raw JSON under `benchmarks/results/`, by day and time."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _side_env(path: Sequence[Path]) -> dict[str, str]:
    inherited = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    parts = [*map(str, path), str(ROOT), str(ROOT / "protos"), *inherited]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(parts)}


def _cpu_words() -> dict[str, str]:
    """Of the first core in /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    first = path.read_text().split("\n\n", 1)[0] if path.is_file() else ""
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): words.strip() for name, words in pairs}
