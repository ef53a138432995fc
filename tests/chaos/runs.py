"""One job from its first attempt to its last, what is done to it on the way, and what is left to compare."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from athanor.v1.worker_service_pb2 import TerminalRecord
from drivers import Driver, actors_of, kill, no_actors, until, write_attempt

from trainer.atomic import sha256_file

TOTAL_STEPS, EVERY_STEPS, SAMPLES = 60, 5, 60
Victim = Literal["student", "teacher", "driver"]
ACTORS: dict[str, str] = {"student": "RayTrainWorker", "teacher": "TeacherShard"}


@dataclass(frozen=True)
class Topology:
    workers: int
    zero_stage: int
    shards: int

    def __str__(self) -> str:
        return f"{self.workers} worker(s), ZeRO {self.zero_stage}, {self.shards} shard(s)"


@dataclass(frozen=True)
class Kill:
    """SIGKILL to one process of a kind, once this step is learned."""

    victim: Victim
    step: int

    def __str__(self) -> str:
        return f"{self.victim}@{self.step}"


def random_kills(rng: random.Random, *, first: int, last: int) -> list[Kill]:
    """Each kind of process once and one of the workers a second time, in any order, at any steps between these."""
    victims: list[Victim] = ["student", "teacher", "driver", rng.choice(["student", "teacher"])]
    rng.shuffle(victims)
    steps = sorted(rng.sample(range(first, last + 1), len(victims)))
    return [Kill(victim, step) for victim, step in zip(victims, steps, strict=True)]


@dataclass
class JobRun:
    """Attempt after attempt in one directory, as the control plane would start them."""

    root: Path
    spec: dict[str, Any]
    control_plane: str
    attempts: int = 0
    killed: list[Kill] = field(default_factory=list)
    """With the steps that were learned when it happened."""
    reached: list[int] = field(default_factory=list)
    """The last step before each resumption: the others learn on for a moment."""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    _driver: Driver | None = None

    @property
    def driver(self) -> Driver:
        assert self._driver is not None, "no attempt yet"
        return self._driver

    def next_attempt(self) -> None:
        self.attempts += 1
        self._driver = Driver(
            write_attempt(self.root, self.spec, number=self.attempts, control_plane=self.control_plane)
        )

    def ended(self) -> TerminalRecord:
        record = self.driver.ended()
        assert record is not None, self.driver.log
        self.seconds = time.monotonic() - self.started
        return record

    def kill_driver(self) -> None:
        if self._driver is not None:
            self._driver.process.kill()
            self._driver.process.wait()

    def stop(self) -> None:
        """Kills the driver, and waits for the end of what it started."""
        self.kill_driver()
        until(no_actors, "Ray ends what the driver started")

    def strike(self, planned: Kill, rng: random.Random) -> None:
        """Waits until the step is learned by whoever learns since the last kill, and kills; a new driver follows."""
        since = time.time() if self.killed else 0.0
        self.driver.until(lambda: self.has_learned(planned.step, since=since), f"step {planned.step}")
        if planned.victim == "driver":
            self.killed.append(Kill("driver", self.step))
            self.stop()
            self.reached.append(self.step)
            self.next_attempt()
            return
        self.driver.until(lambda: self.processes(planned.victim), planned.victim)
        victim = rng.choice(self.processes(planned.victim))
        self.killed.append(Kill(planned.victim, self.step))
        kill(victim)
        if planned.victim == "student":
            self.reached.append(self.step)

    def processes(self, victim: Victim) -> list[psutil.Process]:
        return actors_of(ACTORS[victim])

    def has_learned(self, step: int, *, since: float = 0.0) -> bool:
        last = self._last_figures()
        return last["step"] >= step and last["time"] > since

    @property
    def step(self) -> int:
        """The last one that was learned."""
        return int(self._last_figures()["step"])

    def _last_figures(self) -> dict[str, Any]:
        path = self.driver.attempt.ctx.metrics_path("student")
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return json.loads(whole[-1]) if whole else {"step": 0, "time": 0.0}

    @property
    def weights(self) -> str:
        return sha256_file(self.driver.attempt.ctx.model_dir("student") / "model.safetensors")

    @property
    def samples(self) -> list[list[dict[str, Any]]]:
        """What each worker learned from."""
        ctx, workers = self.driver.attempt.ctx, self.spec["resources"]["student"]["workers"]
        paths = [ctx.samples_path("student", rank) for rank in range(workers)]
        return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]

    def events(self, reason: str) -> list[str]:
        """The words of all events of this kind, in the order of the attempts."""
        folder = self.root / "storage" / "jobs"
        found = []
        for path in sorted(folder.glob("*/attempts/*/events-*.jsonl")):
            lines = map(json.loads, path.read_text().splitlines())
            found += [line["message"] for line in lines if line["reason"] == reason]
        return found

    @property
    def resumed_from(self) -> list[int]:
        return [int(message.rsplit(maxsplit=1)[1]) for message in self.events("RESUMED")]


def every_step_once(samples: list[list[dict[str, Any]]], total_steps: int, num_samples: int) -> bool:
    """Whether each worker learned each step once, and all together each sample once in every whole epoch."""
    ids: dict[int, list[int]] = {step: [] for step in range(1, total_steps + 1)}
    for lines in samples:
        places = Counter((line["step"], line["place"]) for line in lines)
        if set(places.values()) != {1} or {step for step, _ in places} != set(ids):
            return False
        for line in lines:
            ids[line["step"]] += line["sample_ids"]
    taken = [one for step in sorted(ids) for one in ids[step]]
    epochs = [taken[start : start + num_samples] for start in range(0, len(taken), num_samples)]
    return len(epochs) > 1 and all(sorted(epoch) == list(range(num_samples)) for epoch in epochs[:-1])


class Table:
    """The runs, as rows of Markdown."""

    HEAD = ("topology", "killed at step", "attempts", "resumed from", "bit-identical", "samples ok", "seconds")

    def __init__(self, path: Path | None) -> None:
        self.lines = [_row(self.HEAD), _row(["---"] * len(self.HEAD))]
        self._path = path

    def add(self, topology: Topology, run: JobRun, *, identical: bool | None, samples_ok: bool) -> None:
        kills = " ".join(map(str, run.killed)) or "nothing"
        resumed = ", ".join(map(str, run.resumed_from)) or "–"
        same = "–" if identical is None else _yes(identical)
        cells = (topology, kills, run.attempts, resumed, same, _yes(samples_ok), f"{run.seconds:.0f}")
        self.lines.append(_row(map(str, cells)))
        print(self.lines[-1])
        if self._path is not None:
            self._path.write_text("\n".join(self.lines) + "\n")


def _yes(flag: bool) -> str:
    return "yes" if flag else "NO"


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
