"""Progress and events of a worker as files, and what the driver reads of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from attempts import written_attempt

from cluster.driver.attempt import Attempt
from cluster.driver.listener import EventTail, WorkerListener


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(attempt: Attempt) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(attempt.ctx.progress_path.read_text())
    return document


def test_progress_has_every_field_of_the_contract(tmp_path: Path) -> None:
    attempt, clock = written_attempt(tmp_path), Clock()
    WorkerListener(attempt, 0, clock=clock).progress("student", 4, 10, tokens=800.0, tokens_per_second=50.5, loss=2.5)
    assert progress(attempt) == {
        "stage": "train",
        "step": 4,
        "total_steps": 10,
        "tokens": 800,
        "tokens_per_second": 50.5,
        "loss": 2.5,
        "eta_s": None,
        "update_time_us": 1_000_000_000,
    }


def test_a_stage_is_one_word(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    WorkerListener(attempt, 0).progress("evaluate student", 1, 1)
    assert progress(attempt)["stage"] == "evaluate"


def test_the_time_left_of_a_stage_that_does_not_say_it_follows_from_this_run_alone(tmp_path: Path) -> None:
    attempt, clock = written_attempt(tmp_path), Clock()
    listener = WorkerListener(attempt, 0, clock=clock)
    told = []
    for step in range(100, 170, 10):
        listener.progress("label", step, 300)
        told.append(progress(attempt)["eta_s"])
        clock.now += 2.0
    assert told == [None] * 5 + [30.0, 28.0]
    listener.progress("evaluate student", 1, 300)
    assert progress(attempt)["eta_s"] is None


def test_a_stage_that_says_its_time_left_is_believed_also_that_it_does_not_know(tmp_path: Path) -> None:
    attempt, clock = written_attempt(tmp_path), Clock()
    listener = WorkerListener(attempt, 0, clock=clock)
    for step in range(20):
        listener.progress("student", step, 300, eta_s=math.nan)
        clock.now += 2.0
    assert progress(attempt)["eta_s"] is None
    listener.progress("student", 20, 300, eta_s=7.0)
    assert progress(attempt)["eta_s"] == 7.0


def test_progress_is_kept_twice_a_second_and_at_both_ends_of_a_stage(tmp_path: Path) -> None:
    attempt, clock = written_attempt(tmp_path), Clock()
    listener = WorkerListener(attempt, 0, clock=clock)
    kept = []
    for stage, step, seconds in (
        ("label", 1, 0.0),
        ("label", 2, 0.1),
        ("label", 3, 0.5),
        ("student", 1, 0.0),
        ("student", 9, 0.0),
    ):
        clock.now += seconds
        listener.progress(stage, step, 9)
        kept.append((progress(attempt)["stage"], progress(attempt)["step"]))
    assert kept == [("label", 1), ("label", 1), ("label", 3), ("train", 1), ("train", 9)]


def test_figures_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    WorkerListener(attempt, 0).progress("student", 1, 2, loss=float("nan"))
    assert progress(attempt)["loss"] is None


def test_only_the_first_rank_speaks_for_progress(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    WorkerListener(attempt, 1).progress("student", 1, 2)
    assert not attempt.ctx.progress_path.exists()


def test_events_of_all_ranks_arrive_once_and_come_again_until_confirmed(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    tail = EventTail(attempt.path.parent)
    assert tail.read() == []
    WorkerListener(attempt, 0).event("CHECKPOINT_WRITTEN", "step 200")
    WorkerListener(attempt, 1).event("CHECKPOINT_SKIPPED", "step 100 is torn")
    expected = [
        {"reason": "CHECKPOINT_WRITTEN", "message": "step 200"},
        {"reason": "CHECKPOINT_SKIPPED", "message": "step 100 is torn"},
    ]
    assert tail.read() == expected
    assert tail.read() == expected
    tail.confirm()
    assert tail.read() == []


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    tail, path = EventTail(attempt.path.parent), attempt.events_path(0)
    path.write_text('{"reason": "A", ')
    assert tail.read() == []
    tail.confirm()
    path.write_text('{"reason": "A", "message": "b"}\n')
    assert tail.read() == [{"reason": "A", "message": "b"}]


def test_lines_that_are_no_events_are_passed_by(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    tail, path = EventTail(attempt.path.parent), attempt.events_path(0)
    path.write_bytes(b'{"reason": "A", {"reason": "A", "message": "b"}\n7\n\xff\n')
    assert tail.read() == []
    with path.open("a") as file:
        file.write('{"reason": "C", "message": "d"}\n')
    assert tail.read() == [{"reason": "C", "message": "d"}]


def test_a_worker_stops_when_the_driver_says_so_and_says_that_it_listens(tmp_path: Path) -> None:
    attempt = written_attempt(tmp_path)
    listener = WorkerListener(attempt, 1)
    assert not attempt.listening_path.exists()
    assert not listener.should_stop()
    assert attempt.listening_path.exists()
    attempt.pause_path.touch()
    assert listener.should_stop()


def test_the_first_worker_prints_a_line_for_each_loss_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (0, 1):
        listener = WorkerListener(written_attempt(tmp_path / str(rank)), rank, clock=Clock())
        listener.progress("student", 10, 200, loss=2.51239, tokens_per_second=5678.4)
        listener.progress("student", 15, 200)
        listener.progress("student", 20, 200, loss=math.nan)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["student", "student 10/200  loss 2.512  5,678 tokens/s", "student"]
