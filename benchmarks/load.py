"""Does serving hold load while everything changes? A replica killed every 30 s, a rolling update, two canaries.

One canary must be rolled back, one promoted. `python benchmarks/load.py --minutes 10`: the last line is one JSON
object; exit code 1 when an accepted request failed or a decision did not come. The picture is docs/serving-load.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from athanor.v1 import deployment_service_pb2 as pb

from benchmarks.endurance.crowd import Answer, Crowd, failures
from benchmarks.endurance.installation import NAME, Installation, Versions, installed, of_gateway, publish_all
from benchmarks.endurance.picture import draw
from benchmarks.measure import ROOT, machine, rounded, save, versions

_KILL_S = 30.0
_SAMPLE_S = 3.0
_START_S = 300.0
_GRACE_S = 240.0
"""How long beyond the time a decision that was begun is waited for."""


@dataclass
class Run:
    """One run, and all that is noted of it."""

    installation: Installation
    models: Versions
    crowd: Crowd
    events: list[tuple[float, str]] = field(default_factory=list)
    memory_mib: list[tuple[float, float, float]] = field(default_factory=list)
    num_kills: int = 0

    def note(self, what: str) -> None:
        self.events.append((round(self.crowd.now_s(), 1), what))
        print(f"{self.events[-1][0]:7.1f} s  {what}", file=sys.stderr)

    def until(self, holds: Callable[[], object], deadline_s: float) -> bool:
        """Wait while replicas die on time and memory is looked at; False when the deadline passes first."""
        while not holds():
            if self.crowd.now_s() > deadline_s:
                return False
            self._tick()
        return True

    def _tick(self) -> None:
        now_s = self.crowd.now_s()
        if now_s >= (self.num_kills + 1) * _KILL_S:
            self.num_kills += 1
            application = self.installation.kill_replica()
            self.note(f"killed a replica of {application}" if application else "no replica to kill")
        memory = self.installation.memory_mib()
        own = of_gateway(memory)
        self.memory_mib.append((round(now_s, 1), own, sum(map(sum, memory.values())) - own))
        time.sleep(_SAMPLE_S)


def main() -> int:
    """0 when nothing that was accepted failed and every decision came."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="athl-") as root, installed(Path(root)) as installation:
        models = publish_all(installation, Path(root) / "home" / "storage" / "incoming")
        installation.client.create_deployment(
            pb.Deployment(name=NAME, model=models.first, num_replicas=2, cpus_per_replica=0.5)
        )
        installation.client.wait_deployment(NAME, timeout_s=_START_S)
        crowd = Crowd(installation.settings.serve_url, NAME, arguments.people)
        run = Run(installation, models, crowd)
        crowd.start()
        try:
            decisions = _play(run, arguments.minutes * 60.0)
        finally:
            crowd.stop()
    document = _document(run, decisions, arguments)
    draw(arguments.picture, crowd.answers, run.events, run.memory_mib)
    if arguments.save:
        save("load", document)
    print(json.dumps(document))
    return 0 if not document["failed"] and all(decisions.values()) else 1


def _play(run: Run, seconds: float) -> dict[str, bool]:
    """The story: each part begins at its share of the time, or when the one before is over."""
    decisions = {}
    for share, name, act in (
        (0.1, "rolling_update", _update),
        (0.35, "canary_rolled_back", _garbage),
        (0.6, "canary_promoted", _promote),
    ):
        run.until(partial(_is_past, run.crowd, share * seconds), seconds)
        decisions[name] = act(run, seconds + _GRACE_S)
    run.until(lambda: run.crowd.now_s() >= seconds, seconds + _GRACE_S)
    return decisions


def _is_past(crowd: Crowd, at_s: float) -> bool:
    return crowd.now_s() >= at_s


def _update(run: Run, deadline_s: float) -> bool:
    run.note("rolling update begins")
    run.installation.client.update_deployment(pb.Deployment(name=NAME, model=run.models.second), ["model"])
    return _live(run, run.models.second, deadline_s, "rolling update is over")


def _garbage(run: Run, deadline_s: float) -> bool:
    run.note("canary of another model begins")
    run.installation.client.start_canary(NAME, run.models.garbage, gate=_gate(run.models))
    come = run.until(lambda: run.installation.reasons()[0] == "CANARY_ROLLED_BACK", deadline_s)
    run.note("canary was rolled back" if come else "canary: no decision")
    return come


def _promote(run: Run, deadline_s: float) -> bool:
    run.note("canary of a good model begins, 10 %")
    run.installation.client.start_canary(NAME, run.models.third, weight=1000, gate=_gate(run.models))
    return _live(run, run.models.third, deadline_s, "canary was promoted")


def _live(run: Run, model: str, deadline_s: float, words: str) -> bool:
    come = run.until(lambda: run.installation.deployment().resolved_model == model, deadline_s)
    run.note(words if come else f"not in time: {words}")
    return come


def _gate(models: Versions) -> pb.CanaryGate:
    """Replicas die all the time, so the canary may be much slower now and then; half of the answers may not."""
    return pb.CanaryGate(teacher=models.teacher, mirror_share=0.5, max_latency_ratio=4.0)


def _document(run: Run, decisions: dict[str, bool], arguments: argparse.Namespace) -> dict[str, Any]:
    answers = run.crowd.answers
    good = sorted(each.latency_s for each in answers if not each.failure)
    return {
        "minutes": arguments.minutes,
        "people": arguments.people,
        "accepted": sum(not each.is_refused for each in answers),
        "refused": sum(each.is_refused for each in answers),
        "failed": sum(bool(each.failure) and not each.is_refused for each in answers),
        "failures": failures(answers),
        "decisions": decisions,
        "replicas_killed": sum("killed" in what for _, what in run.events),
        "latency_s": {
            "median": rounded(statistics.median(good)),
            "p99": rounded(good[int(0.99 * (len(good) - 1))]),
            "max": rounded(good[-1]),
        },
        "answers_by_version": _by_version(answers),
        "memory_mib": _memory(run.memory_mib),
        "events": run.events,
        "machine": machine(),
        "versions": versions("ray", "torch", "transformers"),
    }


def _by_version(answers: Sequence[Answer]) -> dict[str, int]:
    return {version: sum(each.version == version for each in answers) for version in {each.version for each in answers}}


def _memory(samples: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Of the gateway, which lives through all of it: median of the second and of the last fifth, and their ratio."""
    own = [gateway for _, gateway, _ in samples if gateway]
    fifth = max(len(own) // 5, 1)
    early, late = statistics.median(own[fifth : 2 * fifth] or own), statistics.median(own[-fifth:])
    return {"gateway_early": rounded(early), "gateway_late": rounded(late), "ratio": rounded(late / early)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--people", type=int, default=6, help="how many ask at once")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "serving-load.png")
    parser.add_argument("--save", action="store_true", help="keep the figures under benchmarks/results")
    parser.add_argument("--json", action="store_true", help="as the other benchmarks; the last line is JSON anyway")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
