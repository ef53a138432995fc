"""Jobs that are asked for at once, on both databases: one transaction, and still each for itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import AlreadyExists, NotFound
from cluster.ids import new_job_uid
from cluster.security.audit import verify
from cluster.store import audit_rows
from cluster.store.audit_rows import Call
from cluster.store.creation_rows import Created, Creation
from cluster.store.records import JobQuery, NewJob
from cluster.store.store import Store

CALL = Call("ann", "ipv4:127.0.0.1:1", "athanor.v1.JobService/CreateJob", "", "OK", "", "req-1")
CREATOR = Path(__file__).with_name("many_creators.py")


def creation(request_id: str = "", sha256: str = "hash", **changes: object) -> Creation:
    new = NewJob(new_job_uid("bot"), "bot", "FineTune", {"team": "care"}, {"a": [1, None, "ü"]}, 500, {})
    return Creation(replace(new, **changes), request_id, sha256, call=CALL)  # type: ignore[arg-type]


def made(answers: list[Created | Exception]) -> list[Created]:
    assert all(isinstance(answer, Created) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Created)]


def test_a_group_is_stored_as_each_would_be_alone(store: Store, open_store: Callable[[], Store]) -> None:
    waited_for = store.create_job(creation().new)
    asked = [creation(f"r-{number}") for number in range(20)]
    asked.append(creation(depends_on=(waited_for.uid,), hold_until_us=7, max_run_duration_us=9, retry_of="x"))
    answers = made(list(store.create_jobs(asked)))
    other = open_store()
    assert [answer.job for answer in answers] == [other.get_job(one.new.uid) for one in asked]
    assert [answer.job.resource_version for answer in answers] == list(range(2, 23))
    assert [change.uid for change in other.changes(1, "", 100)] == [one.new.uid for one in asked]
    assert [change.job for change in other.changes(1, "", 100)] == [answer.job for answer in answers]
    assert [answer.entry.call.resource for answer in answers if answer.entry] == [one.new.uid for one in asked]
    assert verify(other.audit_in_order())[0] == len(asked)


def test_one_that_may_not_be_stored_fails_alone_and_leaves_no_gap(store: Store) -> None:
    store.create_job(creation().new, "known", "hash")
    asked = [creation("a"), creation("known", "other"), creation(resolved_models={"bot": "bot@7"}), creation("b")]
    good, reused, missing, also_good = store.create_jobs(asked)
    assert isinstance(reused, AlreadyExists)
    assert isinstance(missing, NotFound)
    versions = [answer.job.resource_version for answer in made([good, also_good])]
    assert versions == [2, 3]
    assert store.head_version() == 3
    assert len(store.list_jobs(JobQuery(10))) == 3
    assert verify(store.audit_in_order())[0] == 2, "what failed is written down by whoever answers it"


def test_one_that_the_database_refuses_fails_alone(store: Store) -> None:
    taken = store.create_job(creation().new)
    answers = store.create_jobs([creation("a"), creation("b", uid=taken.uid), creation("c")])
    assert [isinstance(answer, Created) for answer in answers] == [True, False, True]
    assert store.find_request("b", "hash") is None
    assert store.head_version() == 3
    assert verify(store.audit_in_order())[0] == 2


def test_the_same_request_twice_in_a_group_makes_one_job(store: Store) -> None:
    first, again, other = store.create_jobs([creation("r"), creation("r"), creation("r", "other")])
    one, two = made([first, again])
    assert (one.is_new, two.is_new, one.job) == (True, False, two.job)
    assert isinstance(other, AlreadyExists)
    assert len(store.list_jobs(JobQuery(10))) == 1


def test_a_repeated_request_whose_job_was_deleted_fails_alone(store: Store) -> None:
    job = store.create_job(creation().new, "old", "hash")
    store.delete_job(job)
    good, gone = store.create_jobs([creation("a"), creation("old")])
    assert isinstance(good, Created)
    assert isinstance(gone, NotFound)


def test_what_cannot_be_written_down_is_not_done(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(audit_rows, "append", full)
    with pytest.raises(OSError, match="full"):
        store.create_jobs([creation("r")])
    assert store.head_version() == 0
    assert store.find_request("r", "hash") is None


def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(
    database_url: str, open_store: Callable[[], Store], tmp_path: Path
) -> None:
    """Many callers at once in a process that is killed while all of them wait for an answer, three times."""
    acknowledged: set[str] = set()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, CREATOR, database_url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(150)]
        process.send_signal(signal.SIGKILL)
        heard += process.stdout.readlines()
        process.wait(30)
        process.stdout.close()
        acknowledged |= {json.loads(line)["uid"] for line in heard if line.endswith("}\n")}
    store = open_store()
    stored = {job.uid: job for job in store.list_jobs(JobQuery(100_000))}
    assert len(acknowledged) >= 450
    assert acknowledged <= stored.keys()
    versions = sorted(job.resource_version for job in stored.values())
    assert versions == list(range(1, store.head_version() + 1))
    entries = list(store.audit_in_order())
    assert verify(entries)[0] == len(stored)
    assert {entry.call.resource for entry in entries} == stored.keys(), "an entry for each, and none without its job"
