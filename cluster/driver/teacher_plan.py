"""Which teacher groups a job asks for: one for each different model, with the settings of the job file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from cluster.driver.attempt import Attempt
from cluster.driver.teacher_dispatch import Policy
from cluster.driver.teacher_group import TeacherPlan
from cluster.driver.teacher_shard import Compute
from trainer.job import JobContext, distinct
from trainer.secrets import log_in_to_hub
from trainer.spec import DistillSpec


def teacher_plans(ctx: JobContext) -> list[TeacherPlan]:
    """A teacher group for each different teacher of the job; none for a job without."""
    if not isinstance(ctx.spec, DistillSpec):
        return []
    resources, places = ctx.spec.resources.teacher, distinct(ctx.spec, ctx.teachers)
    firsts = [places.index(index) for index in range(max(places) + 1)]
    return [
        TeacherPlan(
            load=partial(
                load_teacher, ctx.teachers[first], ctx.spec.teachers[first].dtype, hub_token=ctx.spec.hub.token
            ),
            shards=ctx.spec.teachers[first].shards,
            cpus_per_shard=resources.cpus_per_worker,
            gpus_per_shard=resources.gpus_per_worker,
            replicas=ctx.spec.teachers[first].replicas,
            index=index,
            policy=Policy(round_timeout_s=ctx.spec.teachers[first].answer_timeout.total_seconds()),
        )
        for index, first in enumerate(firsts)
    ]


def logged(plans: Sequence[TeacherPlan], attempt: Attempt) -> list[TeacherPlan]:
    """The same, and where each shard copies what it prints: all shards of the attempt are counted through."""
    found, first = list[TeacherPlan](), 0
    for plan in plans:
        logs = [attempt.role_log_path("teacher", first + at) for at in range(plan.num_actors)]
        found.append(replace(plan, logs=logs))
        first += plan.num_actors
    return found


def load_teacher(source: str, dtype: str, rank: int, world: int, *, hub_token: str | None = None) -> Compute:
    """In the shard's process: its share of the model."""
    from trainer.teacher import TeacherModel

    log_in_to_hub(hub_token)
    return TeacherModel(source, dtype=dtype, rank=rank, world=world)
