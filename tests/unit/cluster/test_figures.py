"""Figures step by step: what was cut back is told, and nothing is told twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes import World

from cluster.services.job_files import last_lines_offset, open_inside
from cluster.services.metrics import Figures
from trainer.step_log import StepLog


def learner(world: World) -> Path:
    path = world.settings.job_dir("bot-abcdefgh") / "student" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    return path


def write(log: StepLog, *steps: int, loss: float = 1.0) -> None:
    for step in steps:
        log.write({"step": step, "loss": loss})


def figures(world: World, after_step: int = 0) -> Figures:
    return Figures(world.settings, "bot-abcdefgh", "student", after_step)


def read(reader: Figures) -> list[tuple[int, float, bool]]:
    found = []
    while (new := reader.read()) or reader.has_more:
        found += [(one.step, one.figures["loss"], one.rewound) for one in new]
    return found


def test_lines_come_as_they_are_written(world: World) -> None:
    reader = figures(world)
    assert read(reader) == []
    log = StepLog(learner(world), step=0)
    write(log, 1, 2)
    assert read(reader) == [(1, 1.0, False), (2, 1.0, False)]
    with learner_file(world).open("a") as file:
        file.write('{"step": 3, "lo')
        file.flush()
        assert read(reader) == []
        file.write('ss": 5.0}\nnonsense\n[1]\n')
    assert read(reader) == [(3, 5.0, False)]


def learner_file(world: World) -> Path:
    return world.settings.job_dir("bot-abcdefgh") / "student" / "metrics.jsonl"


@pytest.mark.parametrize("seen_between", [True, False])
def test_a_job_that_goes_back_to_a_checkpoint_is_told_so_once(world: World, seen_between: bool) -> None:
    path, reader = learner(world), figures(world)
    write(StepLog(path, step=0), 2, 4, 6)
    assert [step for step, *_ in read(reader)] == [2, 4, 6]
    log = StepLog(path, step=4)
    if seen_between:
        assert read(reader) == []
    write(log, 6, 8, loss=2.0)
    assert read(reader) == [(6, 2.0, True), (8, 2.0, False)]
    StepLog(path, step=8)
    assert read(reader) == [], "the same lines in a new file are no news"


def test_whoever_goes_on_after_a_step_hears_that_the_job_went_back_meanwhile(world: World) -> None:
    path = learner(world)
    log = StepLog(path, step=0)
    write(log, 2, 4, 6)
    assert read(figures(world, after_step=4)) == [(6, 1.0, False)]
    reader = figures(world, after_step=8)
    assert read(reader) == []
    write(log, 8, 10, loss=2.0)
    assert read(reader) == [(8, 2.0, True), (10, 2.0, False)]


def test_what_lies_elsewhere_is_not_read_through_a_link(world: World, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"step": 1, "loss": 1.0}\n')
    path = learner(world)
    path.symlink_to(secret)
    assert read(figures(world)) == []
    path.unlink()
    path.parent.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    secret.rename(elsewhere / "metrics.jsonl")
    path.parent.symlink_to(elsewhere)
    assert read(figures(world)) == []
    os.mkfifo(world.settings.job_dir("bot-abcdefgh") / "pipe")
    assert open_inside(world.settings, "bot-abcdefgh", world.settings.job_dir("bot-abcdefgh") / "pipe") is None


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "a\nb\n", "\n\n\n", "x" * 200_000 + "\nb\n", "a\n" * 70_000])
@pytest.mark.parametrize("count", [1, 2, 3, 65_537])
def test_the_last_lines_begin_where_they_begin(tmp_path: Path, text: str, count: int) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    with path.open("rb", buffering=0) as file:
        offset = last_lines_offset(file, count)
    assert text[offset:] == "".join(text.splitlines(keepends=True)[-count:])
