"""The teacher as a student worker sees it: `trainer.teacher.Teacher`, answered by the teacher group.

Questions go into Ray's object store and their references to the gateway; answers are read from the object store,
where a shard put them. So the payload goes from rank to rank, and never through gateway or driver (I6).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, ObjectLostError, RayTaskError

from cluster.driver.parcel import pack, pack_tokens, unpack, unpack_tokens
from cluster.driver.teacher_dispatch import Operation, Policy, TeacherLost
from cluster.driver.teacher_group import gateway_name
from cluster.errors import ClusterError
from trainer.batch import Batch
from trainer.errors import TrainerError
from trainer.generate import group_size
from trainer.head import Head
from trainer.teacher import Targets
from trainer.wanted import TeacherFacts, Wanted

_MOST_ATTEMPTS = 5


class RemoteTeacher:
    """Same answers as a `LocalTeacher`, bit for bit."""

    def __init__(self, gateway: ActorHandle, *, num_students: int = 1, timeout_s: float | None = None) -> None:
        self._gateway = gateway
        self._num_students = num_students
        self._timeout_s = timeout_s or Policy().longest_wait_s
        self._num_shards = int(ray.get(gateway.num_shards.remote(), timeout=self._timeout_s))
        self._head: Head | None = None

    @classmethod
    def connect(cls, index: int, num_students: int, policy: Policy) -> RemoteTeacher:
        """The teacher of this job with that number, which so many students share; it dispatches by that policy."""
        return cls(ray.get_actor(gateway_name(index)), num_students=num_students, timeout_s=policy.longest_wait_s)

    def facts(self, batch: Batch) -> TeacherFacts:
        found: TeacherFacts = self._send(Operation("facts"), pack(batch))()
        return found

    def head(self) -> Head:
        """Fetched once for each process."""
        if self._head is None:
            self._head = unpack(Head, self._send(Operation("head"), None)())
        return self._head

    def request(self, batch: Batch, wanted: Wanted) -> Callable[[], Targets]:
        receive = self._send(Operation("targets", wanted=wanted), pack(batch))
        return lambda: unpack(Targets, receive())

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """In chunks of prompts of like length, so many in flight that this student's share of the shards has work."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        share = -(-self._num_shards // self._num_students)
        size = min(group_size(prompts, max_new_tokens), max(1, -(-len(order) // share)))
        completions: list[list[int]] = [[] for _ in prompts]
        in_flight: deque[tuple[list[int], Callable[[], Any]]] = deque()
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            question = pack_tokens([prompts[index] for index in chunk])
            in_flight.append((chunk, self._send(Operation("generate", max_new_tokens), question)))
            if len(in_flight) > 2 * self._num_shards:
                _collect(*in_flight.popleft(), completions)
        for chunk, receive in in_flight:
            _collect(chunk, receive, completions)
        return completions

    def score(self, batch: Batch) -> list[tuple[float, int]]:
        return [(float(nll), int(count)) for nll, count in self._send(Operation("score"), pack(batch))()]

    def _send(self, operation: Operation, question: Any) -> Callable[[], Any]:
        """Sends now; the returned function waits for the answer."""
        parcel = [ray.put(question)]
        call = self._gateway.ask.remote(operation, parcel)
        return lambda: self._receive(operation, parcel, call)

    def _receive(self, operation: Operation, parcel: list[ray.ObjectRef], call: ray.ObjectRef) -> Any:
        """An answer that is lost with the shard that held it is asked for again."""
        for attempt in range(1, _MOST_ATTEMPTS + 1):
            try:
                (answer,) = ray.get(call, timeout=self._timeout_s)
                return ray.get(answer, timeout=self._timeout_s)
            except ObjectLostError:
                if attempt == _MOST_ATTEMPTS:
                    raise
                call = self._gateway.ask.remote(operation, parcel)
            except GetTimeoutError as error:
                message = f"no answer within {self._timeout_s:g} s, in which it could be started anew several times"
                raise TeacherLost("TEACHER_LOST", message) from error
            except RayTaskError as error:
                if isinstance(error.cause, TrainerError | ClusterError):
                    raise error.cause from None
                raise
        raise AssertionError("the last attempt returns or raises")


def _collect(chunk: Sequence[int], receive: Callable[[], Any], completions: list[list[int]]) -> None:
    for index, completion in zip(chunk, unpack_tokens(receive()), strict=True):
        completions[index] = completion
