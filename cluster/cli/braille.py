"""Curves on a terminal, two by four dots to a character."""

from __future__ import annotations

from collections.abc import Sequence

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_EMPTY = 0x2800


def draw(title: str, points: Sequence[tuple[float, float]], width: int, height: int) -> list[str]:
    """One curve as lines: title, `height` rows with the scale at the left, and the scale below. Needs a point."""
    low, high = min(y for _, y in points), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    scale = [_number(high), _number((high + low) / 2), _number(low)]
    margin = max(map(len, scale))
    columns = max(width - margin - 3, 10)
    canvas = _plot(points, columns, height, (first, last), (low, high))
    labels = {0: scale[0], height // 2: scale[1], height - 1: scale[2]}
    rows = [f"{labels.get(at, ''):>{margin}} ┤{''.join(line)}" for at, line in enumerate(canvas)]
    begin, end = _number(first), _number(last)
    ends = f"{begin} {end.rjust(columns - len(begin) - 1)}"
    return [f"{'':>{margin}}  {title}", *rows, f"{'':>{margin}} └{'─' * columns}", f"{'':>{margin}}  {ends}"]


def _plot(
    points: Sequence[tuple[float, float]],
    columns: int,
    rows: int,
    xs: tuple[float, float],
    ys: tuple[float, float],
) -> list[list[str]]:
    """The points joined by lines."""
    cells = [[0] * columns for _ in range(rows)]
    places = [(_place(x, xs, columns * 2), rows * 4 - 1 - _place(y, ys, rows * 4)) for x, y in points]
    for (x0, y0), (x1, y1) in zip(places, [*places[1:], places[-1]], strict=True):
        count = max(abs(x1 - x0), abs(y1 - y0), 1)
        for at in range(count + 1):
            x, y = x0 + round((x1 - x0) * at / count), y0 + round((y1 - y0) * at / count)
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    return [[chr(_EMPTY + cell) if cell else " " for cell in line] for line in cells]


def _place(value: float, ends: tuple[float, float], count: int) -> int:
    low, high = ends
    return round((value - low) / (high - low) * (count - 1)) if high > low else 0


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 or value != int(value) else f"{int(value)}"
