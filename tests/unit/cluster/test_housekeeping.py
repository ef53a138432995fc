"""What is kept, what is forgotten, and that nothing is removed of which nobody knows that it may go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from fakes import World

from cluster import storage_copies
from cluster.errors import AlreadyExists, NotFound, OutOfRange
from cluster.housekeeping import Housekeeping
from cluster.lifecycle import State
from cluster.store.records import Change, NewJob


def ended(world: World, **changes: object) -> str:
    uid = world.create(**changes)
    world.store.transition(world.job(uid), Change("NO", "", State.FAILED))
    return uid


def housekeeping(world: World, **changes: object) -> Housekeeping:
    return Housekeeping(world.settings.model_copy(update=changes), world.store)


async def test_the_log_is_cut_and_living_jobs_keep_their_history(world: World) -> None:
    uid = world.create()
    for number in range(5):
        world.store.transition(world.job(uid), Change("NOTE", str(number)))
    before, history = world.store.head_version(), [(e.reason, e.job.state) for e in world.store.job_events(uid)]
    await housekeeping(world, log_versions=2).round()
    assert [(e.reason, e.job.state) for e in world.store.job_events(uid)] == history
    assert [change.event.message for change in world.store.changes(before - 2, "", 10)] == ["3", "4"]
    with pytest.raises(OutOfRange) as caught:
        world.store.changes(before - 3, "", 10)
    assert caught.value.reason == "RESOURCE_VERSION_TOO_OLD"
    world.store.check_cursor(0)


async def test_the_log_is_cut_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = world.create()
    for number in range(5):
        world.store.transition(world.job(uid), Change("NOTE", str(number)))
    assert world.store.compact(0, 4)
    assert not world.store.compact(0, 4)
    world.store.check_cursor(world.store.head_version())


async def test_a_deleted_jobs_directory_goes_even_if_its_control_plane_died_before(world: World) -> None:
    gone, kept, unknown = ended(world), ended(world), "stranger-abcdefgh"
    for uid in (gone, kept, unknown):
        (world.settings.job_dir(uid) / "attempts").mkdir(parents=True)
    world.store.delete_job(world.job(gone))
    assert world.settings.job_dir(gone).is_dir()
    await housekeeping(world, log_versions=0).round()
    assert not world.settings.job_dir(gone).exists()
    assert world.settings.job_dir(kept).is_dir()
    assert world.settings.job_dir(unknown).is_dir(), "of a directory that nobody knows nothing is concluded"
    assert world.store.find_deletion(gone) is None, "its trace went with the log, after the directory"


def test_a_job_that_has_succeeded_may_go_and_those_that_waited_for_it_begin(world: World) -> None:
    first = world.create()
    new = NewJob("second-abcdefgh", "second", "FineTune", {}, {}, 1, {}, depends_on=(first,))
    waiting = world.store.create_job(new)
    for state in (State.ADMITTED, State.STARTING, State.SUCCEEDED):
        world.store.transition(world.job(first), Change("NOTE", "", state))
    world.store.delete_job(world.job(first))
    with pytest.raises(NotFound):
        world.job(first)
    assert world.job(waiting.uid).num_unmet == 0


async def test_an_old_request_id_may_be_used_again(world: World) -> None:
    new = NewJob("one-abcdefgh", "one", "FineTune", {}, {}, 1, {})
    world.store.create_job(new, "r", "hash")
    with pytest.raises(AlreadyExists):
        world.store.find_request("r", "other")
    assert world.store.find_request("r", "other", project="elsewhere") is None, "an id counts within a project"
    await housekeeping(world, request_ids_s=10.0).round()
    assert world.store.find_request("r", "hash") is not None
    world.clock.advance(11)
    await housekeeping(world, request_ids_s=10.0).round()
    assert world.store.find_request("r", "other") is None


def old_job(world: World) -> Path:
    directory = world.settings.job_dir(ended(world))
    for name in (
        "attempts/1/attempt.json",
        "student/checkpoints/step-00000004/manifest.json",
        "student/checkpoints/.step-00000008.tmp/model.safetensors",
        "student/metrics.jsonl",
        "prepared/tokenizer/tokenizer.json",
        "progress.json",
        "report/report.json",
    ):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (directory / "student" / "link").symlink_to("/etc/passwd")
    return directory


def test_a_copy_holds_what_was_learned_and_nothing_of_the_attempts(world: World) -> None:
    old = old_job(world)
    storage_copies.copy_job(world.settings, old.name, "new-abcdefgh")
    new = world.settings.job_dir("new-abcdefgh")
    files = {path.relative_to(new).as_posix() for path in new.rglob("*") if not path.is_dir()}
    assert files == {
        "student/checkpoints/step-00000004/manifest.json",
        "student/metrics.jsonl",
        "student/link",
        "prepared/tokenizer/tokenizer.json",
    }
    assert (new / "student/link").is_symlink(), "no link is followed"
    with (new / "student/metrics.jsonl").open("a") as file:
        file.write("more")
    assert (old / "student/metrics.jsonl").read_text() == "student/metrics.jsonl", "what grows is not shared"
    assert storage_copies.has_progress(world.settings, old.name)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_copy_without_a_job_is_removed_when_it_is_old(world: World, is_whole: bool) -> None:
    old = old_job(world)
    storage_copies.copy_job(world.settings, old.name, "new-abcdefgh")
    jobs = world.settings.storage / "jobs"
    if not is_whole:
        (jobs / ".new-abcdefgh.copied").unlink()
        (jobs / "new-abcdefgh").rename(jobs / ".new-abcdefgh.tmp")
    assert storage_copies.remove_forsaken(world.settings, world.store) == [], "it may be in the making"
    for path in jobs.iterdir():
        os.utime(path, (0, 0))
    assert storage_copies.remove_forsaken(world.settings, world.store) == ["new-abcdefgh"]
    assert [path.name for path in jobs.iterdir()] == [old.name]


def test_a_copy_that_is_being_made_is_known_by_its_mark_however_old_its_files_are(world: World) -> None:
    """What is copied keeps its times, so those of the half-made directory say nothing."""
    jobs = world.settings.storage / "jobs"
    (jobs / ".new-abcdefgh.tmp").mkdir()
    (jobs / ".new-abcdefgh.copied").touch()
    os.utime(jobs / ".new-abcdefgh.tmp", (0, 0))
    assert storage_copies.remove_forsaken(world.settings, world.store) == []
    assert (jobs / ".new-abcdefgh.tmp").is_dir()


def test_the_mark_is_there_first_and_is_touched_with_each_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old, ages = old_job(world), []
    mark, copy = world.settings.storage / "jobs" / ".new-abcdefgh.copied", shutil.copy2

    def copying(*arguments: str, **more: bool) -> None:
        ages.append(mark.stat().st_mtime)
        os.utime(mark, (0, 0))
        copy(*arguments, **more)

    monkeypatch.setattr(shutil, "copy2", copying)
    storage_copies.copy_job(world.settings, old.name, "new-abcdefgh")
    assert ages
    assert 0 not in [*ages, mark.stat().st_mtime]


def test_a_copy_whose_job_is_stored_while_it_is_cleared_away_is_put_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, old, asked = world.create(), old_job(world), []
    storage_copies.copy_job(world.settings, old.name, uid)
    for path in (world.settings.storage / "jobs").iterdir():
        os.utime(path, (0, 0))
    states_of = world.store.states_of

    def late(uids: list[str]) -> dict[str, State]:
        asked.append(world.settings.job_dir(uid).exists())
        return states_of(uids) if len(asked) > 1 else {}

    monkeypatch.setattr(world.store, "states_of", late)
    assert storage_copies.remove_forsaken(world.settings, world.store) == []
    assert asked == [True, False]
    assert (world.settings.job_dir(uid) / "student" / "metrics.jsonl").is_file()


def test_a_copy_that_was_cleared_away_makes_no_job(world: World) -> None:
    old = old_job(world)
    storage_copies.copy_job(world.settings, old.name, "new-abcdefgh")
    storage_copies.remove_copy(world.settings, "new-abcdefgh")
    with pytest.raises(FileNotFoundError):
        storage_copies.keep_copy(world.settings, "new-abcdefgh")


def test_a_copy_whose_job_is_there_stays_whatever_died_between(world: World) -> None:
    uid = world.create()
    old = old_job(world)
    storage_copies.copy_job(world.settings, old.name, uid)
    jobs = world.settings.storage / "jobs"
    for path in jobs.iterdir():
        os.utime(path, (0, 0))
    assert storage_copies.remove_forsaken(world.settings, world.store) == []
    assert {path.name for path in jobs.iterdir()} == {old.name, uid}
