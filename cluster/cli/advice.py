"""What to do next about a job: by its state, its reason, what holds it up. docs/operations.md has the longer words."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from cluster.cli.job_table import state_of

if TYPE_CHECKING:
    from athanor.v1 import job_pb2

_LATER_STAGES = ("baseline", "evaluate", "publish")
_LOOK = "athanor job logs {uid}"
_AGAIN = "mend it and submit again, or: {again}"
_DATA = "look at the rows that the message names; mend the data and submit again"
_MODEL = "take another model, or mend its directory; the message says what is wrong with it"
_STORAGE = "make room on the storage or mend it, then: {again}"
_MEMORY = (
    "lower training.micro_batch_tokens, or set training.gradient_checkpointing or a higher zero_stage; "
    "then submit again"
)

OF_FAILURE = {
    "NON_FINITE_LOSS": "look at the rows that the message names; lower training.learning_rate; submit again",
    "DATA_INVALID": _DATA,
    "DATA_EMPTY": _DATA,
    "DATA_MISSING": "name a file that every node sees; submit again",
    "COLUMN_MISSING": "say data.format, or rename the column; submit again",
    "TOKENIZER_MISMATCH": "take a student of the teacher's family, or a fresh one with student.config",
    "MAX_LENGTH": "lower data.max_length, or take a model of more positions",
    "MODEL_INVALID": _MODEL,
    "MODEL_UNSUPPORTED": _MODEL,
    "UNSAFE_MODEL_FILE": "convert the model to safetensors with the tool that made it",
    "PAYLOAD_INEXACT": "set objective.teacher_payload to auto, full_logits or topk_logits",
    "OUT_OF_MEMORY": _MEMORY,
    "WORKER_LOST": "too little memory is the usual cause; {look}",
    "DRIVER_LOST": "look for a full disk or too little memory on the nodes; then: {again}",
    "STORAGE_FULL": _STORAGE,
    "STORAGE_FAILED": _STORAGE,
    "HUB_UNREACHABLE": "check the network of the workers, or give a directory; then: athanor job retry {uid}",
    "MAX_RUN_DURATION": "set schedule.max_run_duration higher and go on: {again}",
    "DEPENDENCY_FAILED": (
        "mend the job that it waited for and submit that one again, then this one with the new uid: "
        "athanor job submit -f FILE --set 'spec.schedule.depends_on=[UID]'"
    ),
    "SECRET_NOT_FOUND": "bring the secret to every node, as docs/security.md says; then: athanor job retry {uid}",
    "SECRET_UNUSABLE": "make the secret one line of at least 8 characters; then: athanor job retry {uid}",
    "SUBMIT_REFUSED": "the message has Ray's own words; athanor doctor",
}
OF_WAITING = {
    "RESOURCES": "it begins when others end; who holds what: athanor cluster nodes",
    "BEHIND_OTHERS": "see the queue: athanor queue; move it up with: athanor job update {uid} --priority 800",
    "QUOTA": "its project is at its quota: athanor project list",
    "OVER_QUOTA": "ask for less under spec.resources and submit again, or have the quota raised: athanor project list",
    "RUNNING_JOBS_LIMIT": "as many jobs run as may at once (ATHANOR_MAX_RUNNING_JOBS); it begins when one ends",
    "TOO_LARGE": "it asks for more than the cluster has: ask for less under spec.resources, or add nodes",
    "HELD": "it begins at its hour (schedule.hold_until), or at once after: athanor job resume {uid}",
    "DEPENDENCY": "it begins when those that it depends on have succeeded; see them with: {depends_on}",
    "RELEASING": "the processes of its last attempt are going; after that it waits for its turn",
    "RAY_UNREACHABLE": "Ray cannot be seen; athanor doctor",
}
OF_CONDITION = {
    "Unreachable": "Ray or its driver cannot be seen, nothing is decided about the job; athanor doctor",
    "Blocked": "it is tried again every second; mend what the message says",
}
OF_STATE = {
    "ADMITTED": "athanor job watch {uid}",
    "STARTING": "athanor job watch {uid}",
    "RUNNING": "athanor job watch {uid}",
    "PAUSING": "it writes a checkpoint; then: athanor job resume {uid}",
    "PAUSED": "athanor job resume {uid}",
    "RECOVERING": "it goes on from its last checkpoint by itself; if that repeats: {look}",
    "CANCELLING": "athanor job wait {uid}",
    "CANCELLED": "{again}",
}


def next_steps(job: job_pb2.Job) -> list[str]:
    """Lines for people, the most important first."""
    lines = [OF_CONDITION[each.type] for each in job.conditions if each.status and each.type in OF_CONDITION]
    state = state_of(job)
    if state == "FAILED":
        lines += [OF_FAILURE.get(job.reason, _AGAIN), _LOOK]
    elif state == "QUEUED":
        lines += [OF_WAITING.get(job.queue.reason, "athanor job watch {uid}")]
    elif state == "SUCCEEDED":
        lines += _after_success(job)
    elif state == "PAUSED" and job.reason == "PREEMPTED":
        lines += ["it made room for a more urgent job and goes on by itself"]
    elif state in OF_STATE:
        lines += [OF_STATE[state]]
    names = {"uid": job.uid, "look": _LOOK.format(uid=job.uid), "again": _retry(job)}
    names["depends_on"] = "; ".join(f"athanor job describe {uid}" for uid in dependencies(job))
    return [line.format(**names) for line in lines]


def dependencies(job: job_pb2.Job) -> list[str]:
    """Uids of the jobs that must have succeeded before this one begins."""
    schedule = job.spec.fields["schedule"].struct_value if "schedule" in job.spec.fields else None
    if schedule is None or "depends_on" not in schedule.fields:
        return []
    return [each.string_value for each in schedule.fields["depends_on"].list_value.values]


def _retry(job: job_pb2.Job) -> str:
    return f"athanor job retry {job.uid}{' --from-checkpoint' if goes_on_from_somewhere(job) else ''}"


def goes_on_from_somewhere(job: job_pb2.Job) -> bool:
    """Whether it got as far as its first checkpoint (or its first labels), by what was last heard of it."""
    progress, checkpoint = job.progress, job.spec.fields["checkpoint"].struct_value.fields
    if progress.stage == "train":
        every = checkpoint["every_steps"].number_value if "every_steps" in checkpoint else inf
        return progress.step >= every
    return progress.stage in _LATER_STAGES or (progress.stage == "label" and progress.step > 0)


def _after_success(job: job_pb2.Job) -> list[str]:
    lines = ["athanor job report {uid}"] if job.report_path else []
    if job.published_model:
        lines.append(f"athanor serve deploy {job.published_model.split('@')[0]} --model {job.published_model}")
    return lines
