"""What people see of a running job: a line for what happened, a bar or a few lines for how far it is."""

from __future__ import annotations

import io

import pytest
from athanor.v1 import job_pb2
from fake_server import change
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from cluster.cli.job_view import BarView, LineView, figures, job_view, words


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with job_view("Distill") as view:
        assert isinstance(view, LineView)
        view.change(change(1, "RUNNING", reason="STARTED"))
        for step in range(11):
            view.change(change(2 + step, "RUNNING", stage="train", step=step))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("RUNNING  STARTED")
    assert lines[1] == "  the student learns"
    assert [line.split()[0] for line in lines[2:]] == ["2/10", "4/10", "6/10", "8/10", "10/10"]


def test_a_stage_begins_its_lines_anew(capsys: pytest.CaptureFixture[str]) -> None:
    view = LineView("Distill")
    view.change(change(1, "RUNNING", stage="train", step=10))
    view.change(change(2, "RUNNING", stage="evaluate", step=3))
    assert [line.strip().split("  ")[0] for line in capsys.readouterr().err.splitlines()] == [
        "the student learns", "10/10", "asking the questions nobody trained on", "3/10",
    ]  # fmt: skip


def test_a_condition_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = LineView("Distill")
    for version in (1, 2):
        blind = change(version, "RUNNING")
        blind.job.conditions.append(job_pb2.Condition(type="Unreachable", status=True, message="Ray does not answer"))
        view.change(blind)
    assert capsys.readouterr().err == "  Unreachable: Ray does not answer\n"


def test_on_a_terminal_there_is_a_bar_for_each_stage() -> None:
    screen = io.StringIO()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
    with Progress(*columns, console=Console(file=screen, force_terminal=True, width=120)) as progress:
        view = BarView("FineTune", progress)
        view.change(change(1, "RUNNING", reason="RUNNING", stage="prepare", step=0))
        view.change(change(2, "RUNNING", stage="train", step=4))
        prepare, train = progress.tasks
        assert (prepare.description, prepare.completed, prepare.total) == ("reading the data", 10, 10)
        assert (train.description, train.completed, train.total) == ("the model learns from the labels", 4, 10)
    assert "loss 0.500" in screen.getvalue()


def test_until_something_is_known_of_its_stages_it_says_what_it_waits_for() -> None:
    with Progress(console=Console(file=io.StringIO(), force_terminal=True)) as progress:
        view, seen = BarView("FineTune", progress), []
        for version, (state, stage) in enumerate(
            [("QUEUED", ""), ("STARTING", ""), ("RUNNING", ""), ("RUNNING", "prepare"), ("PAUSED", "prepare")], start=1
        ):
            view.change(change(version, state, stage=stage))
            seen.append([task.description for task in progress.tasks])
    prepare = ["reading the data"]
    assert seen == [["waits for its turn"], ["its processes start"], ["its workers start"], prepare, prepare]


def test_figures_are_left_out_where_there_are_none() -> None:
    assert figures(job_pb2.Progress(stage="label", step=3)) == ""
    assert figures(job_pb2.Progress(loss=0.25, tokens_per_second=1234.5)) == "loss 0.250  1,234 tokens/s"


def test_an_unknown_stage_is_shown_by_its_name() -> None:
    assert words("Distill", "warm-up") == "warm-up"
