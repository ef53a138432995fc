"""The filter language: every tree is read as it was written, and means in SQL what it says."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from fakes import World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidInput
from cluster.filters import (
    FIELDS,
    LABEL,
    NUMBER,
    STATE,
    TEXT,
    TIME,
    All,
    Any,
    Comparison,
    Filter,
    Not,
    Order,
    parse_filter,
    parse_order,
)
from cluster.lifecycle import State
from cluster.store.job_lists import cursor_of
from cluster.store.records import Change, JobQuery, NewJob, StoredJob

WORDS = ["care", "risk", "", 'quo"te', "back\\slash", "it's", "grüße", "50%", "a_b"]
KEYS = ["team", "a/b.c", "x-1"]
NAMES = ["bot", "bot-2", "care"]
SIGNS: dict[str, Callable[..., bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
START_US = 1_800_000_000_000_000


def of_kind(kind: str) -> list[str]:
    return [name for name, one in FIELDS.items() if one == kind]


texts = st.builds(
    Comparison, st.just(TEXT), st.sampled_from(of_kind(TEXT)), st.sampled_from(["=", "!="]), st.sampled_from(NAMES)
)
states = st.builds(
    Comparison, st.just(STATE), st.just("state"), st.sampled_from(["=", "!="]), st.sampled_from(list(State)).map(str)
)
numbers = st.builds(Comparison, st.just(NUMBER), st.just("priority"), st.sampled_from(list(SIGNS)), st.integers(-5, 5))
times = st.builds(
    Comparison,
    st.just(TIME),
    st.sampled_from(of_kind(TIME)),
    st.sampled_from(list(SIGNS)),
    st.integers(-3, 6).map(lambda seconds: START_US + seconds * 1_000_000),
)
labels = st.builds(
    Comparison, st.just(LABEL), st.sampled_from(KEYS), st.sampled_from(["=", "!="]), st.sampled_from(WORDS)
) | st.builds(Comparison, st.just(LABEL), st.sampled_from(KEYS), st.just(":"), st.just("*"))
trees = st.recursive(
    texts | states | numbers | times | labels,
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(All, st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(Any, st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=6,
)


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def written(tree: Filter) -> str:
    """As a person would write it, with parentheses around everything that has parts."""
    if isinstance(tree, Not):
        return f"NOT ({written(tree.part)})"
    if isinstance(tree, All | Any):
        word = " AND " if isinstance(tree, All) else " OR "
        return word.join(f"({written(part)})" for part in tree.parts)
    field = f"labels.{tree.field}" if tree.kind == LABEL else tree.field
    if tree.sign == ":":
        return f"{field}:*"
    if tree.kind == TIME:
        time = datetime.fromtimestamp(int(tree.value) / 1e6, UTC).isoformat()
        return f"{field} {tree.sign} {quoted(time)}"
    return f"{field}{tree.sign}{quoted(tree.value) if isinstance(tree.value, str) else tree.value}"


def is_true(tree: Filter, job: StoredJob) -> bool:
    """What the tree says of a job, in plain Python."""
    if isinstance(tree, Not):
        return not is_true(tree.part, job)
    if isinstance(tree, All | Any):
        return (all if isinstance(tree, All) else any)(is_true(part, job) for part in tree.parts)
    if tree.kind == LABEL:
        value = job.labels.get(tree.field)
    else:
        value = getattr(job, f"{tree.field}_us" if tree.kind == TIME else tree.field)
    if tree.sign == ":":
        return value is not None
    return tree.sign == "!=" if value is None else SIGNS[tree.sign](value, tree.value)


@given(trees)
def test_what_is_written_is_read(tree: Filter) -> None:
    assert parse_filter(written(tree)) == tree


@pytest.fixture(scope="module")
def jobs_there(tmp_path_factory: pytest.TempPathFactory):
    world = World(tmp_path_factory.mktemp("world"))
    for at in range(12):
        known = {key: WORDS[(at + shift) % len(WORDS)] for shift, key in enumerate(KEYS) if (at + shift) % 3}
        uid = f"{NAMES[at % 3]}-abcdefg{'abcdefghijkl'[at]}"
        new = NewJob(uid, NAMES[at % 3], "FineTune", known, {}, at % 4 - 2, {}, project=NAMES[at % 2])
        job = world.store.create_job(new)
        if at % 4 == 1:
            world.clock.advance(1)
            job = world.store.transition(job, Change("NO", "", State.FAILED))
        world.clock.advance(0.5)
    yield world
    world.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees)
def test_sql_means_what_the_tree_says(jobs_there: World, tree: Filter) -> None:
    everybody = jobs_there.store.list_jobs(JobQuery(100))
    found = jobs_there.store.list_jobs(JobQuery(100, filter=tree))
    assert [job.uid for job in found] == [job.uid for job in everybody if is_true(tree, job)]


@pytest.mark.parametrize("text", ["", "create_time", "end_time", "end_time desc", "priority", "priority desc", "name"])
@pytest.mark.parametrize("size", [1, 5])
def test_pages_in_every_order_hold_each_job_once_while_others_come(jobs_there: World, text: str, size: int) -> None:
    order, store = parse_order(text), jobs_there.store
    whole = store.list_jobs(JobQuery(100, order=order))
    seen, after = [], None
    while page := store.list_jobs(JobQuery(size, order=order, after=after)):
        seen += page
        after = cursor_of(page[-1], order)
    assert [job.uid for job in seen] == [job.uid for job in whole]

    def key(job: StoredJob):
        value = {"create_time": job.seq, "end_time": job.end_time_us, "priority": job.priority, "name": job.name}
        return value[order.field]

    known = [key(job) for job in whole if key(job) is not None]
    assert known == sorted(known, reverse=order.descending)
    assert all(key(job) is None for job in whole[len(known) :]), "those that have not ended are the last"


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("colour = red", 1, "known are project, name"),
        ("priority > many", 12, "whole number"),
        ("priority = 1 state = RUNNING", 14, "expected AND, OR or the end"),
        ("(state = RUNNING", 17, "expected ')'"),
        ("state < RUNNING", 7, "one of = !="),
        ("state = WALKING", 9, "states are QUEUED"),
        ('create_time > "yesterday"', 15, "time zone"),
        ('create_time > "2026-11-01T00:00:00"', 15, "time zone"),
        ('name = "open', 8, "quote"),
        ("name = bot*", 8, "wildcards"),
        ("labels.team:care", 13, "labels.<key>:*"),
        ("state = RUNNING AND priority = 1 OR priority = 2", 34, "parentheses"),
        ("labels. = x", 1, "no field"),
        ("NOT", 4, "no field"),
        ("name = a AND", 13, "no field"),
        ("(" * 40, 18, "at most"),
        ("priority = 1" + " AND priority = 1" * 70, 1089, "at most 64"),
        ("x" * 5000, 4097, "longer than"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text: str, position: int, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_filter(text)
    assert caught.value.reason == "INVALID_FILTER"
    assert f"at position {position}: " in caught.value.message
    assert words in caught.value.message
    assert [violation.path for violation in caught.value.violations] == ["filter"]


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No other error, whatever comes."""
    with suppress(InvalidInput):
        assert parse_filter(text) is None or text.strip()


def test_nothing_is_no_filter() -> None:
    assert parse_filter("") is parse_filter("  ") is None


def test_an_order_that_is_none_names_those_there_are() -> None:
    assert parse_order("priority desc") == Order("priority", True)
    assert parse_order(" name ") == Order("name", False)
    for text in ("colour", "name down", "name desc desc"):
        with pytest.raises(InvalidInput, match="create_time, end_time, priority, name"):
            parse_order(text)
