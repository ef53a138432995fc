"""Worker processes for tests: a gloo group of their own by a file, results as files, every process ended by its id."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

from trainer.job import JobContext
from trainer.listener import Silent, Stopped
from trainer.peers import Peers

DEADLINE_S = 500


class KillAt(Silent):
    """The process that hears of step `step` of a learner is gone, as by the kernel's hand."""

    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class StopAt(Silent):
    """Asks to stop when it is asked for the `questions`-th time."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


def run_workers(work: Callable[..., None], world: int, directory: Path, *args: Any) -> list[int]:
    """`work(peers, *args)` in `world` processes; their exit codes. Once one is lost the others are killed."""
    store = directory / f"store-{os.urandom(4).hex()}"
    context = get_context("spawn")
    processes = [context.Process(target=_enter, args=(rank, world, store, work, args)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        for _ in range(DEADLINE_S):
            codes = [process.exitcode for process in processes]
            if all(code is not None for code in codes) or any(codes):
                break
            next(process for process in processes if process.exitcode is None).join(1)
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _enter(rank: int, world: int, store: Path, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    work(Peers(rank, world), *args)


def fit_all(peers: Peers, jobs: list[JobContext], engine: str = "deepspeed") -> None:
    """Every job's student to its end."""
    from trainer.fit import fit

    for ctx in jobs:
        fit(ctx, "student", peers, None, Silent(), engine=engine)


def fit_with_a_stop(peers: Peers, jobs: list[JobContext]) -> None:
    """Every job's student, stopped after its third step and taken up again."""
    from trainer.fit import fit

    for ctx in jobs:
        try:
            fit(ctx, "student", peers, None, StopAt(3))
        except Stopped:
            fit(ctx, "student", peers, None, Silent())
        else:
            raise AssertionError("it was to stop")


def fit_until_killed(peers: Peers, ctx: JobContext, step: int) -> None:
    """The first worker is killed when it tells of step `step`."""
    from trainer.fit import fit

    fit(ctx, "student", peers, None, KillAt(step))
