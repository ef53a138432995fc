"""Curves on a terminal go where the figures go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli.braille import draw

NUMBERS = st.floats(-1e6, 1e6)


def rows(lines: list[str]) -> list[str]:
    """What is drawn, right of the scale."""
    return [line.split("┤", 1)[1] for line in lines if "┤" in line]


def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right() -> None:
    drawn = rows(draw("loss", [(0.0, 4.0), (10.0, 0.0)], 40, 4))
    first = [min((at for at, character in enumerate(row) if character != " "), default=-1) for row in drawn]
    assert first[0] == 0
    assert first == sorted(first)
    assert drawn[-1].rstrip()[-1] != " "
    assert len(drawn[-1].rstrip()) == len(drawn[-1])


def test_the_scale_says_the_ends() -> None:
    lines = draw("loss", [(1.0, 2.0), (500.0, 6.0)], 40, 5)
    assert "loss" in lines[0]
    assert [line.split()[0] for line in (lines[1], lines[3], lines[5])] == ["6", "4", "2"]
    assert lines[-1].split() == ["1", "500"]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=50), st.integers(20, 130), st.integers(2, 20))
def test_whatever_the_figures_are_it_fits(points: list[tuple[float, float]], width: int, height: int) -> None:
    points = sorted(points)
    lines = draw("x", points, width, height)
    assert len(lines) == height + 3
    assert max(map(len, lines)) <= max(width, 40)
    dots = "".join(rows(lines))
    assert all(character == " " or 0x2800 < ord(character) <= 0x28FF for character in dots)
    assert dots.strip()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_figure_and_equal_figures_are_a_line(value: float) -> None:
    assert "".join(rows(draw("x", [(1.0, value)], 40, 3))).strip()
    assert len(set("".join(rows(draw("x", [(0.0, value), (9.0, value)], 40, 3))).strip())) == 1
