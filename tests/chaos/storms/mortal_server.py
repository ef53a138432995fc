"""A control plane that is to be disturbed, as a process: `python mortal_server.py '<json>'`.

`settings`: of the server. `die`: list of {"at": what, "when": "before" | "after", "mark": file}: SIGKILL to itself at
that effect, once, for it leaves the mark. `slow_s`: each write takes up to so long. `clock`: file with seconds that
this process' clock is off.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.launcher import RayLauncher
from cluster.server import serve
from cluster.settings import Settings
from cluster.store.database import Database, Write
from cluster.store.store import Store


def off_clock(path: Path) -> Callable[[], float]:
    """This machine's time, off by what the file says."""
    return lambda: time.time() + float(path.read_text() or 0)


def strike(deaths: list[dict[str, str]], effect: str, when: str) -> None:
    for death in deaths:
        mark = Path(death["mark"])
        if death["at"] == effect and death["when"] == when and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def make_mortal(deaths: list[dict[str, str]]) -> None:
    """Steps of jobs count as effects by their reason; so do the making of jobs and what Ray is asked for."""
    transition, create, mark = Store.transition, Store.create_jobs, Store.mark_attempt
    submit, stop = RayLauncher.submit, RayLauncher.stop

    def transition_(self: Store, job: Any, change: Any, *args: Any, **more: Any) -> Any:
        strike(deaths, change.reason, "before")
        moved = transition(self, job, change, *args, **more)
        strike(deaths, change.reason, "after")
        return moved

    def create_(self: Store, *args: Any, **more: Any) -> Any:
        strike(deaths, "create", "before")
        created = create(self, *args, **more)
        strike(deaths, "create", "after")
        return created

    def mark_(self: Store, *args: Any, **more: Any) -> None:
        strike(deaths, "mark", "before")
        mark(self, *args, **more)
        strike(deaths, "mark", "after")

    async def submit_(self: RayLauncher, *args: Any) -> None:
        strike(deaths, "submit", "before")
        await submit(self, *args)
        strike(deaths, "submit", "after")

    async def stop_(self: RayLauncher, *args: Any) -> None:
        strike(deaths, "stop", "before")
        await stop(self, *args)
        strike(deaths, "stop", "after")

    for owner, name, mortal in (
        *((Store, "transition", transition_), (Store, "create_jobs", create_), (Store, "mark_attempt", mark_)),
        *((RayLauncher, "submit", submit_), (RayLauncher, "stop", stop_)),
    ):
        setattr(owner, name, mortal)


def make_slow(most_s: float) -> None:
    """Each write holds the database for a while."""
    write = Database.write

    @contextmanager
    def slow_write(self: Database) -> Iterator[Write]:
        with write(self) as open_write:
            yield open_write
            time.sleep(random.uniform(0.0, most_s))

    Database.write = slow_write  # type: ignore[method-assign]


def main() -> None:
    wishes = json.loads(sys.argv[1])
    if wishes.get("die"):
        make_mortal(wishes["die"])
    if wishes.get("slow_s"):
        make_slow(wishes["slow_s"])
    if wishes.get("clock"):
        open_store, clock = Store.open, off_clock(Path(wishes["clock"]))
        Store.open = lambda url, **more: open_store(url, clock, **more)  # type: ignore[method-assign, assignment]
    serve(Settings.model_validate(wishes["settings"]))


if __name__ == "__main__":
    main()
