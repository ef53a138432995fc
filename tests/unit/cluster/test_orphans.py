"""What is ours and wanted by nothing goes after a grace; what is wanted, young, or another's stays."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from fakes import Clock, World

from cluster.deployer import Endpoint, ServeView
from cluster.errors import RayUnreachable
from cluster.launcher import INSTALLATION, Submission
from cluster.lifecycle import State
from cluster.orphan_files import MARK
from cluster.orphans import Orphans, Patience
from cluster.policy import View
from cluster.serve_plan import Plan
from cluster.store.model_rows import NewModel
from cluster.store.records import Change, DeploymentState, StoredDeployment

GRACE_S = 600.0
DAY_S = 86_400.0


class Applications:
    """Ray Serve, as far as orphans go."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = set(names)
        self.applied = 0
        self.meanwhile: Callable[[], object] = lambda: None

    async def ours(self) -> set[str]:
        return set(self.names)

    async def apply(self, plan: Plan, before_write: Callable[[], Awaitable[None]] | None = None) -> ServeView:
        self.meanwhile()
        if before_write is not None:
            await before_write()
        self.applied += 1
        self.names = {each["name"] for each in plan.applications}
        return ServeView(Endpoint("x", 8000))


class Site:
    """A world, what looks for orphans in it, and two clocks that go together."""

    def __init__(self, world: World) -> None:
        self.world, self.serving, self.clock = world, Applications(), Clock()
        self.restart()

    def restart(self) -> None:
        world = self.world
        self.orphans = Orphans(world.settings, world.store, world.ray, self.serving, self.clock)

    async def after(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.world.clock.advance(seconds)
        await self.orphans.round()

    async def stray(self, ray_job_id: str, installation: str | None) -> None:
        metadata = {} if installation is None else {INSTALLATION: installation}
        await self.world.ray.submit(Submission(ray_job_id, "sleep 600", metadata))


@pytest.fixture
def site(world: World) -> Site:
    (world.settings.storage / "models").mkdir()
    return Site(world)


def is_alive(site: Site, ray_job_id: str) -> bool:
    return site.world.ray.views[ray_job_id] is View.ALIVE


def test_grace_begins_anew_when_an_orphan_was_none_for_a_moment() -> None:
    clock = Clock()
    patience = Patience(clock)
    assert patience.overdue("x", ["a", "b"], 10.0) == []
    clock.advance(9.0)
    assert patience.overdue("x", ["a"], 10.0) == []
    clock.advance(1.0)
    assert patience.overdue("other", ["a"], 10.0) == [], "kinds are apart"
    assert patience.overdue("x", ["b", "a"], 10.0) == ["a"]
    clock.advance(10.0)
    assert patience.overdue("x", ["b"], 10.0) == ["b"]


async def test_ray_job_that_the_store_does_not_know_is_ended_after_the_grace(site: Site) -> None:
    ours = site.world.store.installation_id()
    await site.stray("bot-aaaaaaaa-1", ours)
    await site.stray("bot-bbbbbbbb-1", "ath-somebodyelse")
    await site.stray("people-1", None)
    for seconds in (0.0, GRACE_S - 1):
        await site.after(seconds)
        assert site.world.ray.stopped == []
    await site.after(1.0)
    assert site.world.ray.stopped == ["bot-aaaaaaaa-1"]
    await site.after(GRACE_S)
    assert site.world.ray.stopped == ["bot-aaaaaaaa-1"]


async def test_ray_jobs_of_attempts_are_wanted_until_they_are_released(site: Site) -> None:
    uid = site.world.create()
    await site.world.running(uid)
    ray_job_id = site.world.job(uid).attempts[-1].ray_job_id
    assert site.world.ray.submissions[-1].metadata[INSTALLATION] == site.world.store.installation_id()
    for _ in range(3):
        await site.after(GRACE_S)
    assert is_alive(site, ray_job_id)
    site.world.store.mark_attempt(site.world.job(uid), released=True)
    await site.after(0.0)
    assert is_alive(site, ray_job_id)
    await site.after(GRACE_S)
    assert not is_alive(site, ray_job_id)


async def test_ray_that_cannot_be_seen_is_no_evidence_and_files_are_looked_at_nevertheless(site: Site) -> None:
    await site.stray("bot-aaaaaaaa-1", site.world.store.installation_id())
    await site.after(0.0)
    site.world.ray.is_reachable = False
    await site.after(GRACE_S)
    assert (site.world.settings.storage / MARK).exists()
    site.world.ray.is_reachable = True
    await site.after(0.0)
    assert site.world.ray.stopped == ["bot-aaaaaaaa-1"], "it was an orphan all the time"


async def test_restarted_control_plane_waits_the_whole_grace_again(site: Site) -> None:
    await site.stray("bot-aaaaaaaa-1", site.world.store.installation_id())
    await site.after(0.0)
    await site.after(GRACE_S - 1)
    site.restart()
    await site.after(1.0)
    assert site.world.ray.stopped == []
    await site.after(GRACE_S)
    assert site.world.ray.stopped == ["bot-aaaaaaaa-1"]


async def test_applications_are_taken_down_when_nothing_is_deployed(site: Site) -> None:
    site.serving.names = {"desk"}
    store = site.world.store
    store.create_model(NewModel("m", "/models/m", "", 0), "", "")
    desk = StoredDeployment("desk", "m", "m@1", "/models/m", 1, 1.0, 0.0, DeploymentState.PENDING, "", 0, 0)
    store.create_deployment(desk)
    for _ in range(2):
        await site.after(GRACE_S)
    assert site.serving.applied == 0
    store.delete_deployment("desk")
    store.forget_deployment("desk")
    await site.after(0.0)
    assert site.serving.applied == 0
    site.serving.meanwhile = lambda: store.create_deployment(desk)
    await site.after(GRACE_S)
    assert site.serving.applied == 0, "somebody deployed it while it was looked at"
    site.serving.meanwhile = lambda: None
    store.delete_deployment("desk")
    store.forget_deployment("desk")
    await site.after(0.0)
    await site.after(GRACE_S)
    assert (site.serving.applied, site.serving.names) == (1, set())
    await site.after(GRACE_S)
    assert site.serving.applied == 1


async def test_serve_that_says_nothing_stops_nobody(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> set[str]:
        raise RayUnreachable("SERVE_UNREACHABLE", "no answer")

    monkeypatch.setattr(site.serving, "ours", away)
    path = site.world.settings.storage / "models" / "bot" / "bot-aaaaaaaa"
    site.world.create()
    await site.after(0.0)
    path.mkdir(parents=True)
    for _ in range(2):
        await site.after(2 * DAY_S)
    assert not path.exists()


def age(site: Site, path: Path) -> None:
    """So that the store's clock, which stands years ahead of the machine's, takes it for old."""
    assert site.world.clock() - path.stat().st_ctime > DAY_S


async def reaped(site: Site, path: Path) -> bool:
    age(site, path)
    await site.after(0.0)
    assert path.exists(), "what is seen for the first time stays"
    await site.after(GRACE_S)
    return not path.exists()


@pytest.mark.parametrize(
    ("place", "is_orphan"),
    [
        ("jobs/bot-aaaaaaaa", True),
        ("jobs/.bot-aaaaaaaa.tmp", True),
        ("jobs/.bot-aaaaaaaa.old", True),
        ("models/bot/bot-aaaaaaaa", True),
        ("models/bot/import-aaaaaaaa", True),
        ("models/bot/.import-aaaaaaaa.tmp", True),
        ("jobs/lost+found", False),
        ("jobs/bot-AAAAAAAA", False),
        ("jobs/.hidden", False),
        ("models/bot/by-hand", False),
        ("models/Bot/bot-aaaaaaaa", False),
        ("other/bot-aaaaaaaa", False),
    ],
)
async def test_directories_without_rows(site: Site, place: str, is_orphan: bool) -> None:
    await site.orphans.round()  # the storage is empty, and becomes ours
    path = site.world.settings.storage / place
    path.mkdir(parents=True)
    (path / "file").write_text("x")
    assert await reaped(site, path) is is_orphan
    if is_orphan:
        assert list(path.parent.iterdir()) == [], "nothing hidden is left of it"


async def test_directories_of_jobs_and_models_that_are_known_stay(site: Site) -> None:
    uid, ended = site.world.create(), site.world.create()
    site.world.store.transition(site.world.job(ended), Change("X", "", State.CANCELLING))
    site.world.store.transition(site.world.job(ended), Change("X", "", State.CANCELLED))
    settings = site.world.settings
    model = settings.publish_dir("bot", "import-aaaaaaaa")
    site.world.store.create_model(NewModel("bot", f"/before/it/moved/models/bot/{model.name}", "", 0), "", "")
    kept = [
        settings.job_dir(uid),
        settings.job_dir(ended),
        settings.publish_dir("student", uid),
        settings.publish_dir("student", uid).with_name(f".{uid}.tmp"),
        model,
    ]
    gone = [
        settings.publish_dir("student", ended),
        settings.publish_dir("student", ended).with_name(f".{ended}.tmp"),
    ]
    for path in (*kept, *gone):
        path.mkdir(parents=True)
    for _ in range(3):
        await site.after(GRACE_S)
    assert [path.exists() for path in kept] == [True] * len(kept)
    assert [path.exists() for path in gone] == [False] * len(gone)


async def test_directory_in_which_something_was_written_lately_stays(site: Site) -> None:
    await site.orphans.round()
    path = site.world.settings.storage / "models" / "bot" / ".import-aaaaaaaa.tmp"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "file").write_text("x")
    now_s = site.world.clock()
    os.utime(path / "deep" / "file", (now_s, now_s))
    for _ in range(3):
        await site.after(GRACE_S)
    assert path.exists()
    for seconds in (DAY_S, GRACE_S):
        await site.after(seconds)
    assert not path.exists()


async def test_link_to_elsewhere_is_never_followed(site: Site, tmp_path: Path) -> None:
    await site.orphans.round()
    treasure = tmp_path / "treasure" / "bot-aaaaaaaa"
    treasure.mkdir(parents=True)
    (site.world.settings.storage / "jobs" / "bot-bbbbbbbb").symlink_to(treasure)
    (site.world.settings.storage / "models" / "bot").symlink_to(treasure.parent)
    for _ in range(3):
        await site.after(DAY_S)
    assert treasure.exists()


async def test_storage_of_another_installation_is_left_alone(site: Site) -> None:
    storage = site.world.settings.storage
    (storage / MARK).write_text("ath-somebodyelse\n")
    path = storage / "jobs" / "bot-aaaaaaaa"
    path.mkdir()
    assert not await reaped(site, path)
    assert (storage / MARK).read_text() == "ath-somebodyelse\n"


async def test_new_store_does_not_take_an_old_storage_for_a_heap_of_orphans(site: Site) -> None:
    storage = site.world.settings.storage
    path = storage / "jobs" / "bot-aaaaaaaa"
    path.mkdir()
    assert not await reaped(site, path)
    assert not (storage / MARK).exists()
    known = storage / "jobs" / site.world.create()
    known.mkdir()
    await site.after(GRACE_S)
    assert (storage / MARK).read_text().strip() == site.world.store.installation_id()
    await site.after(GRACE_S)
    assert (path.exists(), known.exists()) == (False, True)


async def test_files_may_be_kept_for_ever(tmp_path: Path) -> None:
    world = World(tmp_path, orphan_files_grace_s=float("inf"))
    (world.settings.storage / "models").mkdir()
    site = Site(world)
    await site.orphans.round()
    path = world.settings.storage / "jobs" / "bot-aaaaaaaa"
    path.mkdir()
    assert not await reaped(site, path)
    world.close()


async def test_storage_that_is_not_mounted_gets_no_mark(site: Site) -> None:
    storage = site.world.settings.storage
    (storage / "jobs").rmdir()
    await site.after(0.0)
    assert not (storage / MARK).exists()
