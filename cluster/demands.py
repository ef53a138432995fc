"""What a job asks of the cluster, from its spec: the bundles that must all be there before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
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
        self._read = lru_cache(maxsize=most)(self._parse)
        self._documents: dict[str, tuple[str, Mapping[str, Any]]] = {}

    def of(self, uid: str, kind: str, spec: Mapping[str, Any]) -> Demand | None:
        """None: another release stored a spec that this one cannot read."""
        self._documents[uid] = (kind, spec)
        try:
            return self._read(uid)
        finally:
            del self._documents[uid]

    def _parse(self, uid: str) -> Demand | None:
        kind, spec = self._documents[uid]
        try:
            return demand_of(parse_spec(kind, spec))
        except SpecError:
            return None
