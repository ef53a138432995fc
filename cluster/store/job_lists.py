"""Lists of jobs in SQL: which, in what order, and from where on.

A page begins behind the last job of the page before, by its value and its number: what comes meanwhile moves nothing.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, not_, or_, select, union_all

from cluster.filters import LABEL, All, Comparison, Filter, Not, Order
from cluster.store.job_rows import jobs_by
from cluster.store.records import JobQuery, StoredJob
from cluster.store.tables import jobs

_NEVER_US = 2**62
"""Later than any time."""
_COLUMNS: Mapping[str, Any] = {
    **{name: jobs.c[name] for name in ("project", "name", "uid", "kind", "creator", "reason", "state", "priority")},
    "create_time": jobs.c.create_time_us,
    "end_time": jobs.c.end_time_us,
}
_SIGNS: Mapping[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def list_jobs(connection: Connection, query: JobQuery) -> list[StoredJob]:
    """One page. The newest or oldest of some states are read from the ends of an index, state by state."""
    conditions = _conditions(query)
    if query.states and query.order.field == "create_time":
        each = [
            _page(select(jobs.c.seq).where(jobs.c.state == state.value, *conditions), query) for state in query.states
        ]
        conditions = [jobs.c.seq.in_(union_all(*(select(part.subquery().c.seq) for part in each)))]
    elif query.states:
        conditions.append(jobs.c.state.in_([state.value for state in query.states]))
    return jobs_by(connection, _page(select(jobs).where(*conditions), query))


def _page(statement: Select[Any], query: JobQuery) -> Select[Any]:
    way = "desc" if query.order.descending else "asc"
    columns = dict.fromkeys(_key(query.order))
    return statement.order_by(*(getattr(column, way)() for column in columns)).limit(query.limit)


def cursor_of(job: StoredJob, order: Order) -> tuple[str | int, int]:
    """Where the page behind this job begins."""
    if order.field == "create_time":
        return job.seq, job.seq
    if order.field == "end_time":
        return _unended(order) if job.end_time_us is None else job.end_time_us, job.seq
    return (job.name if order.field == "name" else job.priority), job.seq


def _key(order: Order) -> tuple[Any, Any]:
    """Jobs that have not ended come last, either way."""
    if order.field == "create_time":
        return jobs.c.seq, jobs.c.seq
    if order.field == "end_time":
        return func.coalesce(jobs.c.end_time_us, _unended(order)), jobs.c.seq
    return _COLUMNS[order.field], jobs.c.seq


def _unended(order: Order) -> int:
    return -1 if order.descending else _NEVER_US


def _conditions(query: JobQuery) -> list[ColumnElement[bool]]:
    """All but the states."""
    found = list[ColumnElement[bool]]()
    if query.name:
        found.append(jobs.c.name == query.name)
    if query.scope is not None:
        found.append(jobs.c.project.in_(query.scope))
    if query.filter is not None:
        found.append(condition(query.filter))
    if query.after is not None:
        found.append(_behind(query.order, query.after))
    return found


def _behind(order: Order, after: tuple[str | int, int]) -> ColumnElement[bool]:
    (key, seq), is_behind = _key(order), operator.lt if order.descending else operator.gt
    value, number = after
    if key is seq:
        return and_(is_behind(seq, number))
    return or_(is_behind(key, value), and_(key == value, is_behind(seq, number)))


def condition(tree: Filter) -> ColumnElement[bool]:
    """True or false for every job, never null: what a job does not have is unlike every value."""
    if isinstance(tree, Comparison):
        return _comparison(tree)
    if isinstance(tree, Not):
        return not_(condition(tree.part))
    parts = [condition(part) for part in tree.parts]
    return and_(*parts) if isinstance(tree, All) else or_(*parts)


def _comparison(tree: Comparison) -> ColumnElement[bool]:
    column = jobs.c.labels[tree.field].as_string() if tree.kind == LABEL else _COLUMNS[tree.field]
    is_there = column.is_not(None)
    if tree.sign == ":":
        return and_(is_there)
    if tree.sign == "!=":
        return not_(and_(is_there, column == tree.value))
    return and_(is_there, _SIGNS[tree.sign](column, tree.value))
