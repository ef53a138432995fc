"""New jobs in SQL, however many are asked for at once: a few statements for one, and as few for a hundred.

Works inside a transaction that its caller holds. What may not be stored fails alone, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.errors import ClusterError, NotFound
from cluster.store import audit_rows, job_rows, model_rows, request_rows
from cluster.store.audit_rows import Call, StoredEntry
from cluster.store.database import Write
from cluster.store.records import NewJob, StoredJob

CREATE_JOB = "CreateJob"


@dataclass(frozen=True)
class Creation:
    """What one request wants to be stored."""

    new: NewJob
    request_id: str = ""
    request_sha256: str = ""
    method: str = CREATE_JOB
    call: Call | None = None
    """What the audit log shall say of it, all but the job's uid; None: nothing here."""

    @property
    def key(self) -> tuple[str, str]:
        """Within a method and a project an id stands for one request."""
        return f"{self.method}/{self.new.project}", self.request_id


@dataclass(frozen=True)
class Created:
    """What a request has made, now or when it came first."""

    job: StoredJob
    is_new: bool
    entry: StoredEntry | None = None


def create(write: Write, asked: Sequence[Creation]) -> list[Created | ClusterError]:
    """An answer for each, in their order."""
    known = request_rows.known(write.connection, [one.key for one in asked])
    answers: dict[int, Created | ClusterError] = {}
    fresh: dict[int, Creation] = {}
    for at, one in enumerate(asked):
        try:
            uid = request_rows.same(known.get(one.key), *one.key, one.request_sha256)
            if not uid:
                model_rows.check_there(write.connection, one.new.resolved_models.values())
        except ClusterError as error:
            answers[at] = error
            continue
        if not uid:
            fresh[at] = one
            if one.request_id:
                known[one.key] = (one.request_sha256, one.new.uid)
    stored = dict(zip(fresh, _insert(write, list(fresh.values())), strict=True))
    made = {job.uid: job for job in stored.values()}
    for at, one in enumerate(asked):
        if at in stored:
            answers[at] = Created(stored[at], is_new=True)
        elif at not in answers:
            answers[at] = _made_before(write, made, known[one.key][1])
    return _written_down(write, asked, answers)


def _made_before(write: Write, made: Mapping[str, StoredJob], uid: str) -> Created | ClusterError:
    """The job of a repeated request; an error, of that request alone, when it was deleted since."""
    try:
        return Created(made.get(uid) or job_rows.get_job(write.connection, uid), is_new=False)
    except NotFound as error:
        return error


def _insert(write: Write, fresh: Sequence[Creation]) -> list[StoredJob]:
    jobs = job_rows.insert_jobs(write, [one.new for one in fresh])
    request_rows.remember(write, [(*one.key, one.request_sha256, one.new.uid) for one in fresh])
    return jobs


def _written_down(
    write: Write, asked: Sequence[Creation], answers: Mapping[int, Created | ClusterError]
) -> list[Created | ClusterError]:
    """With the audit log's entries for those that wanted one. What failed is nobody's affair here."""
    told = {
        at: replace(one.call, resource=answer.job.uid)
        for at, one in enumerate(asked)
        if one.call is not None and isinstance(answer := answers[at], Created)
    }
    entries = dict(zip(told, audit_rows.append(write, list(told.values())) if told else (), strict=True))
    return [_with_entry(answers[at], entries.get(at)) for at in range(len(asked))]


def _with_entry(answer: Created | ClusterError, entry: StoredEntry | None) -> Created | ClusterError:
    return replace(answer, entry=entry) if isinstance(answer, Created) else answer
