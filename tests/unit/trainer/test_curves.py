"""Curves are what metrics.jsonl says, whatever attempts wrote before: no step twice, none missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from trainer.curves import Curves, FigureLog


def read(directory: Path) -> list[Event]:
    """All events behind those that name the format and begin anew; each checksum is held against its bytes."""
    (path,) = directory.glob("events.out.tfevents*")
    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        body, check = data[12 : 12 + length], int.from_bytes(data[12 + length : 16 + length], "little")
        plain = crc32c(body)
        assert check == ((plain >> 15 | plain << 17) + 0xA282EAD8) & 0xFFFFFFFF
        events.append(Event.FromString(body))
        data = data[16 + length :]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == SessionLog.START
    return events[2:]


def points(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [
        (event.step, value.simple_value)
        for event in read(directory)
        for value in event.summary.value
        if value.tag == tag
    ]


def line(step: int, loss: float) -> dict[str, object]:
    return {"step": step, "loss": loss, "terms": {"divergence": loss / 2}, "time": 1000.0 + step}


def test_every_figure_is_a_curve_and_step_and_time_are_its_axes(tmp_path: Path) -> None:
    curves = Curves(tmp_path, [line(1, 4.0)])
    curves.write(line(2, 2.0))
    assert points(tmp_path, "loss") == [(1, 4.0), (2, 2.0)]
    assert points(tmp_path, "terms/divergence") == [(1, 2.0), (2, 1.0)]
    assert {value.tag for event in read(tmp_path) for value in event.summary.value} == {"loss", "terms/divergence"}
    assert [event.wall_time for event in read(tmp_path)] == [1001.0, 1002.0]


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = FigureLog(path, step=0)
    for step in (1, 2, 3):
        first.write(line(step, float(step)))
    again = FigureLog(path, step=1)  # its checkpoint was of step 1
    for step in (2, 3):
        again.write(line(step, step + 10.0))
    assert points(tmp_path / "tensorboard", "loss") == [(1, 1.0), (2, 12.0), (3, 13.0)]
    assert [json.loads(each)["loss"] for each in path.read_text().splitlines()] == [1.0, 12.0, 13.0]


def test_nothing_that_is_no_number_becomes_a_point(tmp_path: Path) -> None:
    Curves(tmp_path, [{"step": 1, "loss": 1.0, "note": "words", "none": None}])
    assert [value.tag for event in read(tmp_path) for value in event.summary.value] == ["loss"]


@pytest.mark.parametrize("step", [0, 5])
def test_a_log_without_lines_has_a_file_without_points(tmp_path: Path, step: int) -> None:
    FigureLog(tmp_path / "metrics.jsonl", step=step)
    assert read(tmp_path / "tensorboard") == []
