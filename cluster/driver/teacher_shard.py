"""One process of the teacher group: loads its share of the model and answers one call after the other.

The actor's shell around a `Compute`; torch is loaded when the process is told to load the model, so that whoever merely
starts shards does not need it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.exceptions import ObjectLostError

from cluster.driver.teacher_dispatch import Operation
from cluster.driver.tee import copy_output

if TYPE_CHECKING:
    from cluster.driver.process_group import Meeting
    from trainer.batch import Batch
    from trainer.head import Head
    from trainer.teacher import Targets
    from trainer.wanted import TeacherFacts, Wanted


log = logging.getLogger(__name__)


class Compute(Protocol):
    """One process' share of a teacher; with several processes every method is collective."""

    def facts(self, batch: Batch | None) -> TeacherFacts: ...

    def head(self) -> Head: ...

    def targets(self, batch: Batch | None, wanted: Wanted) -> Targets: ...

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]: ...

    def score(self, batch: Batch | None) -> list[tuple[float, int]]: ...


Load = Callable[[int, int], Compute]
"""(rank, world) -> this process' share, once the process group is there."""


class TeacherShard:
    """Rank `rank` of `world`."""

    def __init__(self, rank: int, world: int, num_cpus: float, load: Load, log_path: Path | None = None) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if log_path is not None:
            copy_output(log_path)
        self._rank = rank
        self._world = world
        self._num_cpus = num_cpus
        self._load = load
        self._meeting: Meeting | None = None
        self._compute: Compute | None = None

    def open_meeting(self) -> str:
        """The address at which the group meets: rank 0's part."""
        from cluster.driver.process_group import Meeting

        self._meeting = Meeting.open(ray.util.get_node_ip_address())
        return self._meeting.address

    def load(self, address: str) -> None:
        """Joins the group, if there are others, and loads; returns when the shard can answer."""
        from cluster.driver import process_group

        process_group.use_threads(self._num_cpus)
        if self._world > 1:
            meeting = self._meeting or process_group.Meeting.find(address)
            process_group.join(meeting, self._rank, self._world)
        self._compute = self._load(self._rank, self._world)
        log.info("shard %d of %d has its share of the teacher", self._rank, self._world)

    def answer(self, operation: Operation, parcel: Sequence[ray.ObjectRef] | None) -> list[ray.ObjectRef] | None:
        """The reference of the answer to the one parcel in the list; None for None, after the same collective work.

        References in lists are handed on as they are: what they stand for never passes through the dispatcher.
        A question that died with its student gets None too: nobody waits for it, and the other shards must not stop.
        """
        assert self._compute is not None, "load comes first"
        question = None
        try:
            question = None if parcel is None else ray.get(parcel[0])
        except ObjectLostError:
            log.warning("a question was lost with the student that asked it")
            parcel = None
        answer = _ANSWERS[operation.name](self._compute, operation, question)
        return None if parcel is None else [ray.put(answer)]


def _head(compute: Compute, _operation: Operation, _question: object) -> Any:
    from cluster.driver.parcel import pack

    return pack(compute.head())


def _targets(compute: Compute, operation: Operation, question: Any) -> Any:
    from cluster.driver.parcel import pack

    return pack(compute.targets(_batch(question), operation.wanted))


def _facts(compute: Compute, _operation: Operation, question: Any) -> Any:
    return compute.facts(_batch(question))


def _generate(compute: Compute, operation: Operation, question: Any) -> Any:
    from cluster.driver.parcel import pack_tokens, unpack_tokens

    prompts = [] if question is None else unpack_tokens(question)
    return pack_tokens(compute.generate(prompts, operation.max_new_tokens))


def _score(compute: Compute, _operation: Operation, question: Any) -> Any:
    return compute.score(_batch(question))


def _batch(question: Any) -> Batch | None:
    from cluster.driver.parcel import unpack
    from trainer.batch import Batch

    return None if question is None else unpack(Batch, question)


_ANSWERS: dict[str, Callable[[Compute, Operation, Any], Any]] = {
    "facts": _facts,
    "head": _head,
    "targets": _targets,
    "generate": _generate,
    "score": _score,
}
