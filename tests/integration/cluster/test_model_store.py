"""The registry's promises on both databases: versions, aliases, their history, deletion."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import insert

from cluster.errors import AlreadyExists, ClusterError, Conflict, NotFound, PreconditionFailed
from cluster.ids import new_job_uid
from cluster.lifecycle import State
from cluster.store.model_rows import NewModel
from cluster.store.records import Change, DeploymentState, NewJob, StoredDeployment, StoredJob
from cluster.store.store import Store
from cluster.store.tables import alias_history


def version(store: Store, name: str = "bot", request_id: str = "") -> int:
    new = NewModel(name, f"/m/{new_job_uid(name)}", "ff" * 32, 7, "from elsewhere")
    return store.create_model(new, request_id, "hash").version


def job(store: Store, *references: str) -> StoredJob:
    pinned = {f"{reference.partition('@')[0]}@champion": reference for reference in references}
    return store.create_job(NewJob(new_job_uid("user"), "user", "FineTune", {}, {}, 500, pinned))


def deployment(reference: str) -> StoredDeployment:
    return StoredDeployment("desk", "bot", reference, "/m/1", 1, 1.0, 0.0, DeploymentState.PENDING, "", 0, 0)


def at(store: Store, alias: str = "champion") -> int:
    return store.model_alias("bot", alias).version


def test_version_from_outside_is_stored_once_for_a_request(store: Store) -> None:
    assert (version(store, request_id="r-1"), version(store, request_id="r-1"), version(store)) == (1, 1, 2)
    found = store.find_model_request("r-1", "hash")
    assert found == store.model_version("bot", 1)
    assert (found.description, found.job_uid, found.num_parameters) == ("from elsewhere", None, 7)
    with pytest.raises(AlreadyExists, match="another CreateModelVersion"):
        store.find_model_request("r-1", "other")
    store.create_job(NewJob(new_job_uid("x"), "x", "FineTune", {}, {}, 500, {}), "r-1", "hash")
    assert store.find_model_request("r-2", "hash") is None


def test_numbers_are_dense_whoever_creates_and_never_given_twice(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: version(stores[number % 2]), range(16)))
    assert sorted(made) == list(range(1, 17))
    stores[0].delete_model("bot", 16)
    assert version(stores[1]) == 17
    with pytest.raises(NotFound, match="bot@17"):
        stores[0].model_version("bot", 16)
    assert stores[0].model_newest("bot").version == 17
    assert [each.version for each in stores[0].list_models("bot", None, 3)] == [17, 15, 14]


def test_of_a_deleted_model_nothing_is_there_but_its_number(store: Store) -> None:
    version(store)
    path = store.model_version("bot", 1).path
    assert store.model_paths() == {path}
    assert store.delete_model("bot", 1).path == path
    assert store.model_paths() == set()
    assert store.list_models("", None, 9) == []
    for ask in (lambda: store.model_newest("bot"), lambda: store.delete_model("bot", 1)):
        with pytest.raises(NotFound, match="no model"):
            ask()
    with pytest.raises(NotFound):
        store.set_alias("bot", "champion", 1, None)
    assert version(store) == 2


def test_model_in_use_is_not_deleted_and_its_users_are_named(store: Store) -> None:
    for _ in range(11):
        version(store)
    store.set_alias("bot", "champion", 1, None)
    user = job(store, "bot@1")
    other = job(store, "bot@11")
    store.create_deployment(deployment("bot@1"))
    with pytest.raises(PreconditionFailed) as caught:
        store.delete_model("bot", 1)
    assert caught.value.reason == "MODEL_IN_USE"
    assert all(words in caught.value.message for words in ("bot@champion", "deployment desk", user.uid))
    assert other.uid not in caught.value.message, "bot@1 is not bot@11"
    store.set_alias("bot", "champion", 2, None)
    store.delete_deployment("desk")
    with pytest.raises(PreconditionFailed, match="the deployment desk"):
        store.delete_model("bot", 1)
    store.forget_deployment("desk")
    with pytest.raises(PreconditionFailed, match=user.uid):
        store.delete_model("bot", 1)
    store.transition(user, Change("CANCEL_ASKED", "", State.CANCELLING))
    store.transition(store.get_job(user.uid), Change("CANCELLED", "", State.CANCELLED))
    store.delete_model("bot", 1)
    assert store.get_job(user.uid).resolved_models == {"bot@champion": "bot@1"}, "lineage stays readable"


def test_what_was_pinned_and_deleted_meanwhile_makes_no_job_and_no_deployment(store: Store) -> None:
    version(store)
    store.delete_model("bot", 1)
    with pytest.raises(NotFound):
        job(store, "bot@1")
    with pytest.raises(NotFound):
        store.create_deployment(deployment("bot@1"))


def test_delete_and_use_at_once_never_both_succeed(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    for number in range(1, 9):
        version(stores[0])
        barrier = threading.Barrier(2)

        def attempt(act: Callable[[], object], barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            try:
                act()
            except ClusterError:
                return False
            return True

        uses = [lambda n=number: job(stores[0], f"bot@{n}"), lambda n=number: stores[1].delete_model("bot", n)]
        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(attempt, uses)) == 1


def test_rollback_goes_back_and_back_as_an_undo_does(store: Store) -> None:
    for number in (1, 2, 3):
        assert version(store) == number
        store.set_alias("bot", "champion", number, None, "ann")
    assert store.roll_back_alias("bot", "champion", 3, "bob").version == 2
    assert store.roll_back_alias("bot", "champion", None, "bob").version == 1
    with pytest.raises(PreconditionFailed) as caught:
        store.roll_back_alias("bot", "champion", None)
    assert caught.value.reason == "NO_EARLIER_VERSION"
    with pytest.raises(Conflict):
        store.roll_back_alias("bot", "champion", 3)
    moves = store.alias_history("bot", "champion")
    assert [(each.version, each.previous_version, each.cause, each.actor) for each in moves] == [
        (1, 0, "SET_ALIAS", "ann"),
        (2, 1, "SET_ALIAS", "ann"),
        (3, 2, "SET_ALIAS", "ann"),
        (2, 3, "ROLLBACK", "bob"),
        (1, 2, "ROLLBACK", "bob"),
    ]
    store.set_alias("bot", "champion", 3, None)
    assert store.roll_back_alias("bot", "champion", None).version == 1, "what was undone is not come back to"
    with pytest.raises(NotFound):
        store.roll_back_alias("bot", "ghost", None)


def test_an_alias_that_is_taken_away_leaves_its_history(store: Store) -> None:
    for number in (1, 2):
        version(store)
        store.set_alias("bot", "champion", number, None, "ann")
    with pytest.raises(Conflict):
        store.delete_alias("bot", "champion", 1, "bob")
    store.delete_alias("bot", "champion", 2, "bob")
    with pytest.raises(NotFound):
        store.model_alias("bot", "champion")
    with pytest.raises(NotFound):
        store.delete_alias("bot", "champion", None, "bob")
    assert store.model_version("bot", 2).aliases == ()
    last = store.alias_history("bot", "champion")[-1]
    assert (last.version, last.previous_version, last.cause, last.actor) == (0, 2, "DELETE_ALIAS", "bob")
    store.set_alias("bot", "champion", 1, 0)
    assert store.roll_back_alias("bot", "champion", None).version == 2, "it never leads to where there was nothing"
    store.delete_model("bot", 1)


def test_rollback_passes_over_deleted_versions(store: Store) -> None:
    for number in (1, 2, 3):
        version(store)
        store.set_alias("bot", "champion", number, None)
    store.delete_model("bot", 2)
    assert store.roll_back_alias("bot", "champion", None).version == 1
    store.set_alias("bot", "champion", 3, None)
    store.delete_model("bot", 1)
    with pytest.raises(PreconditionFailed, match="no other that is still there"):
        store.roll_back_alias("bot", "champion", None)
    assert at(store) == 3


def test_history_of_an_older_release_is_read(store: Store) -> None:
    version(store)
    row = {"name": "bot", "alias": "old", "version": 1, "previous_version": 0, "cause": "bot-abcdefgh", "actor": ""}
    with store.database.write() as write:
        write.connection.execute(insert(alias_history).values(**row, create_time_us=1))
    (move,) = store.alias_history("bot", "old")
    assert replace(move, create_time_us=0).cause == "PUBLISHED"


def test_installation_keeps_its_id(open_store: Callable[[], Store]) -> None:
    stores = [open_store(), open_store()]
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda number: stores[number % 2].installation_id(), range(8)))) == 1
