"""What a job asks of the cluster, held against what the cluster has: a job that cannot be placed says so.

Counts CPUs and GPUs in all, and looks no further: what else runs there, and what fits on which node, is Ray's affair.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.job import distinct
from trainer.spec import DistillSpec, FineTuneSpec


def shortage(spec: FineTuneSpec, cluster: Mapping[str, float]) -> str:
    """What cannot be placed on a cluster of these resources; empty when it can."""
    found = (_short(_amounts(spec, kind), kind, cluster.get(kind, 0.0)) for kind in ("CPU", "GPU"))
    return "; ".join(filter(None, found))


def _amounts(spec: FineTuneSpec, kind: str) -> list[tuple[int, float]]:
    """(processes, amount of each) for students and teachers."""
    student, teacher = spec.resources.student, spec.resources.teacher
    is_cpu = kind == "CPU"
    amounts = [(student.workers, student.cpus_per_worker if is_cpu else student.gpus_per_worker)]
    if isinstance(spec, DistillSpec):
        places = distinct(spec, [one.model for one in spec.teachers])
        for first in (spec.teachers[places.index(index)] for index in range(max(places) + 1)):
            actors = first.shards * first.replicas
            amounts.append((actors, teacher.cpus_per_worker if is_cpu else teacher.gpus_per_worker))
    return [(count, amount) for count, amount in amounts if amount]


def _short(amounts: list[tuple[int, float]], kind: str, has: float) -> str:
    if sum(count * amount for count, amount in amounts) <= has:
        return ""
    words = " and ".join(f"{count} \N{MULTIPLICATION SIGN} {amount:g}" for count, amount in amounts)
    return f"waits for {words} {kind}s; the cluster has {has:g} in all"
