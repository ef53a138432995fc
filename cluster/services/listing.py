"""Pages of jobs, and of one job's events."""

from __future__ import annotations

from athanor.v1 import job_service_pb2 as messages

from cluster.filters import Order, parse_filter, parse_order
from cluster.security.caller import caller
from cluster.services.pages import make_token, page_size, read_token
from cluster.services.visible import shown_all, visible_job
from cluster.store.job_lists import cursor_of
from cluster.store.records import JobQuery
from cluster.store.store import Store
from cluster.wire import event_to_proto, states_from_proto


def list_jobs(store: Store, request: messages.ListJobsRequest) -> messages.ListJobsResponse:
    """A page token is good for the same states, name, filter and order, and for the same caller's projects."""
    states, size = states_from_proto(request.states), page_size(request.page_size)
    order, scope = parse_order(request.order_by), caller().scope
    question = ("jobs", sorted(states), request.name, request.filter, order, scope)
    query = JobQuery(
        limit=size + 1,  # one more than a page, to know whether there is another
        states=states,
        name=request.name,
        scope=scope,
        filter=parse_filter(request.filter),
        order=order,
        after=_after(request.page_token, question, order),
    )
    found = store.list_jobs(query)
    more = make_token(cursor_of(found[size - 1], order), question) if len(found) > size else ""
    return messages.ListJobsResponse(jobs=shown_all(store, found[:size]), next_page_token=more)


def _after(token: str, question: tuple[object, ...], order: Order) -> tuple[str | int, int] | None:
    cursor = read_token(token, question, [str if order.field == "name" else int, int])
    return None if cursor is None else (cursor[0], int(cursor[1]))


def list_events(store: Store, request: messages.ListJobEventsRequest) -> messages.ListJobEventsResponse:
    """Oldest first."""
    job, size = visible_job(store, request.uid), page_size(request.page_size)
    question = ("events", job.uid)
    cursor = read_token(request.page_token, question, [int])
    found = store.job_events(job.uid, int(cursor[0]) if cursor else 0, size + 1)
    more = make_token([found[size - 1].resource_version], question) if len(found) > size else ""
    return messages.ListJobEventsResponse(events=[event_to_proto(one) for one in found[:size]], next_page_token=more)
