"""Events of a job that say the same again and again, told once: a long job writes thousands of checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from athanor.v1 import job_service_pb2

REPEATS = frozenset({"CHECKPOINT_SAVED"})


@dataclass(frozen=True)
class Told:
    """An event, and how many of the same word came right before it."""

    event: job_service_pb2.JobEvent
    num_before: int = 0
    moves: bool = True
    """Whether the job went to another state by it."""

    @property
    def message(self) -> str:
        more = f" (the last of {self.num_before + 1})" if self.num_before else ""
        return f"{self.event.message}{more}"


def folded(events: Sequence[job_service_pb2.JobEvent]) -> Iterator[Told]:
    """Each event, but of a run of the same word only the last."""
    count, state = 0, -1
    for at, event in enumerate(events):
        following = events[at + 1].reason if at + 1 < len(events) else ""
        if event.reason in REPEATS and following == event.reason:
            count += 1
            continue
        yield Told(event, count, moves=event.state != state)
        count, state = 0, event.state


def shortened(told: Sequence[Told], most: int) -> list[Told]:
    """The newest, at most so many where that can be: steps from state to state stay before anything else."""
    steps = [each for each in told if each.moves]
    others = [each for each in told if not each.moves]
    left = max(most - len(steps), 0)
    kept = {id(each) for each in (*steps, *(others[-left:] if left else ()))}
    return [each for each in told if id(each) in kept]


class Repeats:
    """The same for events as they come: the first of a run is told, the rest are counted until something else comes."""

    def __init__(self) -> None:
        self._reason = ""
        self._skipped: list[job_service_pb2.JobEvent] = []

    def heard(self, event: job_service_pb2.JobEvent) -> list[Told]:
        """What is to be told now."""
        if event.reason in REPEATS and event.reason == self._reason:
            self._skipped.append(event)
            return []
        found = [Told(self._skipped[-1], len(self._skipped) - 1)] if self._skipped else []
        self._reason, self._skipped = event.reason, []
        return [*found, Told(event)]
