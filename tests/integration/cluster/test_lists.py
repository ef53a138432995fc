"""Lists, deletions and compaction mean the same on both databases."""

from __future__ import annotations

import pytest

from cluster.errors import NotFound, OutOfRange
from cluster.filters import parse_filter, parse_order
from cluster.lifecycle import State
from cluster.store.job_lists import cursor_of
from cluster.store.records import Change, JobQuery, NewJob
from cluster.store.store import Store


@pytest.fixture
def filled(store: Store) -> Store:
    """a: care, 100, FAILED; b: risk, 900; c: no team, 500; d: care in another project, 500, FAILED."""
    for name, labels, priority, project in (
        ("a", {"team": "care", "x/y.z": 'quo"te'}, 100, "default"),
        ("b", {"team": "risk"}, 900, "default"),
        ("c", {}, 500, "default"),
        ("d", {"team": "care"}, 500, "other"),
    ):
        new = NewJob(
            f"{name}-abcdefgh",
            name,
            "FineTune",
            labels,
            {},
            priority,
            {},
            project=project,
            creator="ann" if name == "b" else "",
        )
        job = store.create_job(new)
        if name in "ad":
            store.transition(job, Change("NO", "", State.FAILED))
    return store


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('labels.team = "care"', "ad"),
        ('labels.team != "care"', "bc"),
        ("labels.team:*", "abd"),
        ("NOT labels.team:*", "c"),
        (r'labels.x/y.z = "quo\"te"', "a"),
        ("priority >= 500 AND NOT state = FAILED", "bc"),
        ('end_time > "2000-01-01T00:00:00Z"', "ad"),
        ('NOT end_time > "2000-01-01T00:00:00Z"', "bc"),
        ('create_time < "2000-01-01T00:00:00+01:00"', ""),
        ("creator = ann", "b"),
        ("uid = c-abcdefgh OR uid = nobody", "c"),
        ('project = other OR (name = b AND reason = "")', "bd"),
    ],
)
def test_a_filter_means_the_same_everywhere(filled: Store, text: str, names: str) -> None:
    query = JobQuery(10, filter=parse_filter(text), order=parse_order("name"))
    assert "".join(job.name for job in filled.list_jobs(query)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [("", "dcba"), ("name", "abcd"), ("priority desc", "bdca"), ("end_time", "adbc"), ("end_time desc", "dacb")],
)
def test_an_order_means_the_same_everywhere(filled: Store, text: str, names: str) -> None:
    order, seen, after = parse_order(text), "", None
    while page := filled.list_jobs(JobQuery(1, order=order, after=after)):
        seen += page[0].name
        after = cursor_of(page[0], order)
    assert seen == names
    assert {job.name for job in filled.list_jobs(JobQuery(10, scope=("other",)))} == {"d"}
    assert filled.list_jobs(JobQuery(10, scope=())) == []


def test_a_deleted_job_leaves_a_trace_until_the_log_is_cut(filled: Store) -> None:
    filled.delete_job(filled.get_job("a-abcdefgh"))
    with pytest.raises(NotFound):
        filled.get_job("a-abcdefgh")
    head = filled.head_version()
    (change,) = filled.changes(head - 1, "", 10)
    assert (change.uid, change.job, change.resource_version) == ("a-abcdefgh", None, head)
    assert [change.uid for change in filled.changes(0, "a-abcdefgh", 10)] == ["a-abcdefgh"]
    assert not filled.compact(1, 1000)
    with pytest.raises(OutOfRange):
        filled.changes(1, "", 10)
    assert [event.reason for event in filled.job_events("d-abcdefgh")] == ["CREATED", "NO"]
    assert [event.job.state for event in filled.job_events("d-abcdefgh")] == [State.QUEUED, State.FAILED]
    filled.compact(0, 1000)
    assert filled.find_deletion("a-abcdefgh") is None
