"""Written labels survive a kill: whole lines are kept, a torn one is forgotten."""

from __future__ import annotations

from pathlib import Path

from trainer.labels import LabelWriter, read_labels


def test_what_is_written_is_read_from_all_parts(tmp_path: Path) -> None:
    for rank in range(2):
        with LabelWriter(tmp_path / f"part-{rank}.jsonl", max_new_tokens=3) as writer:
            writer.write(rank, [5, 6])
            writer.write(rank + 10, [5, 6, 7])
    assert read_labels(tmp_path) == {
        0: ([5, 6], True),
        1: ([5, 6], True),
        10: ([5, 6, 7], False),
        11: ([5, 6, 7], False),
    }


def test_a_torn_line_is_not_read_and_is_cut_before_more_is_written(tmp_path: Path) -> None:
    part = tmp_path / "part-0.jsonl"
    with LabelWriter(part, max_new_tokens=8) as writer:
        writer.write(0, [1])
        writer.write(1, [2])
    part.write_bytes(part.read_bytes()[:-5])
    assert read_labels(tmp_path) == {0: ([1], True)}
    with LabelWriter(part, max_new_tokens=8) as writer:
        writer.write(1, [3])
    assert read_labels(tmp_path) == {0: ([1], True), 1: ([3], True)}


def test_no_directory_means_no_labels(tmp_path: Path) -> None:
    assert read_labels(tmp_path / "labels") == {}
