"""Orphans against a real Ray: ours go after the grace, those of others stay; and what Ray itself cleans up."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from test_ray_jobs import launcher_for, settings_for, until_view

from cluster.deployer import Deployer, Endpoint
from cluster.ids import new_installation_id, new_job_uid, ray_job_id
from cluster.launcher import INSTALLATION, RayLauncher, Submission
from cluster.orphans import Orphans
from cluster.policy import View
from cluster.ray_head import RayHead
from cluster.settings import Settings
from cluster.store.store import Store

pytestmark = pytest.mark.ray
LONG = f"{sys.executable} -c 'import time; time.sleep(600)'"
HOLDER = Path(__file__).parent / "resource_holder.py"


@pytest.fixture
def settings(ray_cluster: RayHead, tmp_path: Path) -> Settings:
    return settings_for(ray_cluster, tmp_path, orphan_grace_s=0.5)


@pytest.fixture
async def launcher(settings: Settings) -> AsyncIterator[RayLauncher]:
    async with launcher_for(settings) as launcher:
        yield launcher


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.1)


async def test_ours_is_reaped_after_the_grace_and_others_are_not(settings: Settings, launcher: RayLauncher) -> None:
    store = Store.open(settings.database_url)
    deployer = Deployer(
        settings.ray_dashboard_url,
        settings.token_file,
        Endpoint("127.0.0.1", settings.serve_port),
        storage=settings.storage,
    )
    owners = {"ours": store.installation_id(), "theirs": new_installation_id(), "nobody": ""}
    ids = {name: ray_job_id(new_job_uid(name), 1) for name in owners}
    for name, installation in owners.items():
        await launcher.submit(Submission(ids[name], LONG, {INSTALLATION: installation} if installation else {}))
    orphans = Orphans(settings, store, launcher, deployer)
    await orphans.round()
    assert (await launcher.look(ids["ours"])).view is View.ALIVE, "what is seen for the first time has its grace"
    async with asyncio.timeout(120):
        while (await launcher.look(ids["ours"])).view is not View.ENDED:
            await orphans.round()
    assert [(await launcher.look(ids[name])).view for name in ("theirs", "nobody")] == [View.ALIVE] * 2
    for name in ("theirs", "nobody"):
        await launcher.stop(ids[name])
        await until_view(launcher, ids[name], View.ENDED)
    await deployer.aclose()
    store.close()


async def test_what_a_killed_driver_held_is_given_back_by_ray(
    settings: Settings, launcher: RayLauncher, tmp_path: Path
) -> None:
    """A placement group and an actor; so nothing but Ray jobs themselves has to be looked for."""
    (node,) = [node for node in await launcher.nodes() if node.is_alive]
    before = (await launcher.reserved()).get(node.id)
    assert before is None or before.cpus == 0.0
    holder, pid = ray_job_id(new_job_uid("holder"), 1), tmp_path / "pid"
    await launcher.submit(Submission(holder, f"{sys.executable} {HOLDER} {pid}", {}))
    await until(pid.exists)
    held = (await launcher.reserved())[node.id]
    assert held.cpus == pytest.approx(2.5), "two bundles of 1 and an actor of 0.5 beside them"
    os.kill(int(pid.read_text()), signal.SIGKILL)
    async with asyncio.timeout(120):
        while (left := (await launcher.reserved()).get(node.id)) is not None and left.cpus > 0.0:
            await asyncio.sleep(0.1)
    await until_view(launcher, holder, View.ENDED)
