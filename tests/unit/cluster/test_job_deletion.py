"""A job that two ask to delete at once: it is gone, and both are told so."""

from __future__ import annotations

import pytest
from athanor.v1 import job_service_pb2 as messages
from fakes import World

from cluster.errors import NotFound
from cluster.lifecycle import State
from cluster.services import job_changes
from cluster.store.records import Change


def test_whoever_comes_second_is_told_that_it_is_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = world.create()
    for state in (State.CANCELLING, State.CANCELLED):
        world.store.transition(world.job(uid), Change(state.value, "", state=state))
    delete_job = world.store.delete_job

    def late(job: object) -> None:
        monkeypatch.setattr(world.store, "delete_job", delete_job)
        job_changes.delete(world.settings, world.store, request)  # somebody else's, in between
        delete_job(job)

    monkeypatch.setattr(world.store, "delete_job", late)
    request = messages.DeleteJobRequest(uid=uid)
    job_changes.delete(world.settings, world.store, request)
    with pytest.raises(NotFound):
        world.job(uid)
