"""What a job asks of the cluster, from its spec: the bundles that must all be there before it begins."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.capacity import Bundle, Demand, Resources
from trainer.errors import SpecError
from trainer.job import distinct
from trainer.spec import DistillSpec, FineTuneSpec, parse_spec


def demand_of(spec: FineTuneSpec) -> Demand:
    """Student workers, then the actors of each distinct teacher."""
    student, teacher = spec.resources.student, spec.resources.teacher
    bundles = [Bundle(student.workers, Resources(student.cpus_per_worker, student.gpus_per_worker))]
    if isinstance(spec, DistillSpec):
        places = distinct(spec, [one.model for one in spec.teachers])
        each = Resources(teacher.cpus_per_worker, teacher.gpus_per_worker)
        for first in (spec.teachers[places.index(index)] for index in range(max(places) + 1)):
            bundles.append(Bundle(first.shards * first.replicas, each))
    return tuple(bundles)


class Demands:
    """Of stored jobs, by uid: a spec never changes, and reading it costs a millisecond."""

    def __init__(self, most: int = 20_000) -> None:
        self._known: OrderedDict[str, Demand | None] = OrderedDict()
        self._most = most

    def unknown(self, uids: Iterable[str]) -> list[str]:
        return [uid for uid in uids if uid not in self._known]

    def learn(self, uid: str, kind: str, spec: Mapping[str, Any]) -> None:
        try:
            self._known[uid] = demand_of(parse_spec(kind, spec))
        except SpecError:
            self._known[uid] = None

    def forget(self) -> None:
        """The eldest, beyond so many. Between two decisions: within one, all that was learned is asked for."""
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def of(self, uid: str) -> Demand | None:
        """None: another release stored a spec that this one cannot read. Only after it was learned."""
        self._known.move_to_end(uid)
        return self._known[uid]
