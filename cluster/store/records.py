"""What the store gives and takes, as frozen values. No SQL, no protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, NamedTuple

from cluster.filters import NEWEST_FIRST, Filter, Order
from cluster.lifecycle import CLAIMING, TERMINAL, State
from cluster.store.deployment_records import DeploymentState as DeploymentState
from cluster.store.deployment_records import StoredDeployment as StoredDeployment

Json = Mapping[str, Any]


class Outcome(StrEnum):
    """How an attempt ended, in the words of its driver."""

    SUCCEEDED = "SUCCEEDED"
    USER_ERROR = "USER_ERROR"
    INFRASTRUCTURE_ERROR = "INFRASTRUCTURE_ERROR"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


@dataclass(frozen=True)
class Terminal:
    """A driver's terminal record."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    model_path: str = ""
    model_manifest_sha256: str = ""
    report_path: str = ""
    summary: Json = field(default_factory=dict)
    num_parameters: int = 0
    """Of the model, as its athanor.json says; no part of the record itself."""


@dataclass(frozen=True)
class StoredAttempt:
    """One run of a job on Ray."""

    job_uid: str
    number: int
    ray_job_id: str
    lease_token_sha256: str = ""
    lease_expires_us: int | None = None
    """None: its driver was never heard."""
    submit_time_us: int | None = None
    """When Ray was last asked to run it, whatever came back."""
    start_time_us: int | None = None
    """When Ray was known to have it."""
    end_time_us: int | None = None
    reason: str = ""
    message: str = ""
    terminal: Json | None = None
    released: bool = False
    """Its Ray job is known to have ended: it holds nothing on the cluster any more."""

    @property
    def is_open(self) -> bool:
        return self.end_time_us is None


@dataclass(frozen=True)
class StoredJob:
    """A job with its attempts, as of one resource version."""

    seq: int
    uid: str
    name: str
    kind: str
    labels: Mapping[str, str]
    spec: Json
    priority: int
    state: State
    reason: str
    message: str
    conditions: Sequence[Json]
    progress: Json | None
    resolved_models: Mapping[str, str]
    published_model: str
    report_path: str
    summary: Json | None
    infrastructure_failures: int
    user_failures: int
    cancel_time_us: int | None
    create_time_us: int
    start_time_us: int | None
    end_time_us: int | None
    update_time_us: int
    resource_version: int
    cancel_grace_us: int | None = None
    """How long its driver may take to end; None: the server's default."""
    project: str = "default"
    creator: str = ""
    """Name of the token that made it."""
    retry_of: str = ""
    max_run_duration_us: int | None = None
    queue_since_us: int | None = None
    """When it last began to wait."""
    queue_key: float | None = None
    """Its place in the order of its project, see `scheduler.queue_key`."""
    hold_until_us: int | None = None
    depends_on: Sequence[str] = ()
    """Uids of jobs that must have succeeded before it begins."""
    num_unmet: int = 0
    """How many of them have not yet; -1: one of them never will."""
    retry_at_us: int | None = None
    """A lost attempt is not followed by the next before this."""
    preemptions: int = 0
    ran_us: int = 0
    """How long it was RUNNING before it was so last."""
    running_since_us: int | None = None
    attempts: tuple[StoredAttempt, ...] = ()

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL

    @property
    def may_hold(self) -> bool:
        """Whether something on the cluster is meant for it, or may be its own still."""
        return self.state in CLAIMING or any(not attempt.released for attempt in self.attempts[-1:])

    @property
    def last_attempt(self) -> StoredAttempt | None:
        return self.attempts[-1] if self.attempts else None

    def ran_until(self, now_us: int) -> int:
        """How long it was RUNNING in all: what max_run_duration counts."""
        return self.ran_us + (0 if self.running_since_us is None else max(0, now_us - self.running_since_us))

    def condition(self, kind: str) -> Json | None:
        """The condition of that type, whether it holds or not."""
        return next((condition for condition in self.conditions if condition["type"] == kind), None)

    def snapshot(self) -> dict[str, Any]:
        """What can change of a job, as JSON. Secrets, even hashed, stay out."""
        values = {name: getattr(self, name) for name in _CHANGEABLE}
        values["attempts"] = [_public(attempt) for attempt in self.attempts]
        return values

    def at(self, snapshot: Json) -> StoredJob:
        """This job as it was at a snapshot."""
        values = {name: snapshot[name] for name in _CHANGEABLE if name in snapshot}  # older ones know less
        values["state"] = State(values["state"])
        attempts = tuple(StoredAttempt(job_uid=self.uid, **attempt) for attempt in snapshot["attempts"])
        return replace(self, **values, attempts=attempts)


_FIXED = {
    *("seq", "uid", "name", "kind", "spec", "resolved_models", "create_time_us", "attempts"),
    *("project", "creator", "retry_of", "depends_on", "num_unmet"),
}
_CHANGEABLE = tuple(each.name for each in fields(StoredJob) if each.name not in _FIXED)


def _public(attempt: StoredAttempt) -> dict[str, Any]:
    private = ("job_uid", "lease_token_sha256", "lease_expires_us", "terminal")
    return {name: value for name, value in asdict(attempt).items() if name not in private}


@dataclass(frozen=True)
class NewJob:
    """What a caller decides of a job; the store adds the rest."""

    uid: str
    name: str
    kind: str
    labels: Mapping[str, str]
    spec: Json
    priority: int
    resolved_models: Mapping[str, str]
    project: str = "default"
    creator: str = ""
    retry_of: str = ""
    max_run_duration_us: int | None = None
    hold_until_us: int | None = None
    depends_on: Sequence[str] = ()


class QueueEntry(NamedTuple):
    """A waiting job, as far as the scheduler wants to know it."""

    uid: str
    project: str
    priority: int
    seq: int
    queue_since_us: int
    queue_key: float
    max_run_duration_us: int | None
    ran_us: int
    is_releasing: bool
    """Its last attempt may still hold something on the cluster."""


@dataclass(frozen=True)
class Lease:
    """Who speaks: an attempt, and the hash of the secret it showed."""

    job_uid: str
    attempt: int
    token_sha256: str


@dataclass(frozen=True)
class Publication:
    """A finished model on its way into the registry."""

    name: str
    alias: str | None
    path: str
    manifest_sha256: str
    teachers: tuple[str, ...]
    num_parameters: int
    metrics: Json


@dataclass(frozen=True)
class Change:
    """One step of a job: what is stored, and the line in its history. `state` None leaves the state as it is."""

    reason: str
    message: str
    state: State | None = None
    job: Mapping[str, object] = field(default_factory=dict)
    """Columns of the job."""
    attempt: Mapping[str, object] = field(default_factory=dict)
    """Columns of its last attempt."""
    opens_attempt: StoredAttempt | None = None
    publication: Publication | None = None


@dataclass(frozen=True)
class StoredEvent:
    """One line of a job's history, with the job as it was after it."""

    resource_version: int
    reason: str
    message: str
    create_time_us: int
    job: StoredJob


@dataclass(frozen=True)
class JobQuery:
    """Which jobs a page holds, and in what order."""

    limit: int
    states: tuple[State, ...] = ()
    name: str = ""
    scope: tuple[str, ...] | None = None
    """Only jobs of these projects; None: of all."""
    filter: Filter | None = None
    order: Order = NEWEST_FIRST
    after: tuple[str | int, int] | None = None
    """Behind the job with this value and this number; see `job_lists.cursor_of`."""


@dataclass(frozen=True)
class StoredModel:
    """A version of a model, with the aliases that point at it."""

    name: str
    version: int
    path: str
    manifest_sha256: str
    job_uid: str | None
    teachers: Sequence[str]
    num_parameters: int
    metrics: Json
    create_time_us: int
    description: str = ""
    delete_time_us: int | None = None
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"
