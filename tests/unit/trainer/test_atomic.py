"""Files are whole or absent, and no path leads out of its root (I5)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.atomic import replace_directory, safe_join, sha256_file, write_bytes, write_json, write_text
from trainer.errors import UserError


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "progress.json"
    write_json(target, {"step": 1, "word": "ä"})
    write_json(target, {"step": 2})
    assert json.loads(target.read_text()) == {"step": 2}
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "progress.json"
    write_text(target, "old")
    with pytest.raises(ValueError, match="JSON"):
        write_json(target, {"loss": float("nan")})
    assert target.read_text() == "old"


def test_the_mode_is_that_of_the_caller(tmp_path: Path) -> None:
    write_bytes(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_torn_temporary_of_an_earlier_run_is_no_hindrance(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "1")
    for leftover in ("a", "b"):
        (tmp_path / f".{leftover}.1.tmp").write_text("torn")
    write_text(tmp_path / "a", "2")
    assert (tmp_path / "a").read_text() == "2"


@pytest.mark.parametrize("already_there", [False, True])
def test_a_directory_is_replaced_as_a_whole(tmp_path: Path, already_there: bool) -> None:
    final, building = tmp_path / "model", tmp_path / "building"
    if already_there:
        write_text(final / "stale.txt", "old")
    write_text(building / "sub" / "new.txt", "new")
    replace_directory(building, final)
    assert [path.name for path in final.rglob("*.txt")] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_bytes(tmp_path / "f", b"abc" * 100_000)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@pytest.mark.parametrize("relative", ["/etc/passwd", "../x", "a/../../x", "a/..", "", ".", "a\0b"])
def test_climbing_paths_are_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(UserError) as caught:
        safe_join(tmp_path, relative)
    assert caught.value.reason == "UNSAFE_PATH"


def test_links_out_of_the_root_are_refused_and_links_inside_are_not(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_text(root / "real" / "f", "x")
    (root / "out").symlink_to(tmp_path)
    (root / "inside").symlink_to(root / "real")
    with pytest.raises(UserError, match="through a link"):
        safe_join(root, "out/f")
    assert safe_join(root, "inside/f").read_text() == "x"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "..", ".", "b.txt", "", "~", "..."]), max_size=6))
def test_whatever_is_accepted_lies_inside(parts: list[str]) -> None:
    root = Path("/srv/models")
    try:
        joined = safe_join(root, "/".join(parts))
    except UserError:
        return
    assert joined.resolve().is_relative_to(root)
