"""The report's pictures as inline SVG: bars with intervals, and curves over the steps.

Drawn by matplotlib without its global state. Ink is named by CSS variables of the page (`var(--student)`), so one
picture serves light and dark; text stays text and takes the page's font. It decides neither what is shown nor where.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

Form = Literal["percent", "number"]

# Colours that only name a CSS variable: each is replaced by it in the finished SVG.
_INK = {"text": "#010101", "muted": "#020202", "rule": "#030303"}
_ROLE_INK = {"teacher": "#040404", "student": "#050505", "baseline": "#060606"}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": _INK["text"],
    "axes.edgecolor": _INK["rule"],
    "axes.labelcolor": _INK["muted"],
    "xtick.color": _INK["muted"],
    "ytick.color": _INK["muted"],
    "grid.color": _INK["rule"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
_NOT_FOR_A_PAGE = (
    r"<metadata>.*?</metadata>",
    r"<style.*?</style>",
    r' (width|height)="[0-9.]+pt"',
    r'(?<=<g) id="[^"]*"',
    r"font-family: [^;\"]*;? ?",
)
_WIDE = 7.0
"""Inches, of a picture that stands alone in its row."""
_LOG_FROM = 40.0
_SMOOTH_FROM = 60


@dataclass(frozen=True)
class Bar:
    """One model's figure."""

    role: str
    label: str
    value: float
    interval: tuple[float, float] | None
    text: str
    """The figure in words, written behind the bar."""


@dataclass(frozen=True)
class Curve:
    """One model's figure over the steps."""

    role: str
    label: str
    steps: Sequence[float]
    values: Sequence[float]


def bars(lines: Sequence[Bar], *, form: Form, title: str, wide: bool = False) -> str:
    """Horizontal bars from 0, whiskers for the intervals; `percent` goes to 100 %, `number` as far as it must."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(_WIDE if wide else 4.4, 0.4 + 0.42 * len(lines)), layout="constrained")
        axes = figure.add_subplot()
        end = 1.0 if form == "percent" else 1.15 * max(_end_of(line) for line in lines)
        for place, line in enumerate(lines):
            _draw_bar(axes, place, line, gap=0.015 * end)
        _frame_bars(axes, lines, end=end, form=form)
        return _svg(figure, title)


def curves(lines: Sequence[Curve], *, title: str, wide: bool = False) -> str:
    """Lines over the steps; the value axis is logarithmic where the figures span more than a factor of 40."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(_WIDE, 2.6) if wide else (3.3, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw_curve(axes, line)
        if _spans_decades([value for line in lines for value in line.values]):
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_ylim(bottom=min(0.0, *(value for line in lines for value in line.values)))
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", linewidth=0.6)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        return _svg(figure, title)


def _end_of(line: Bar) -> float:
    return max(line.value, line.interval[1] if line.interval else 0.0, 1e-9)


def _draw_bar(axes: Any, place: int, line: Bar, *, gap: float) -> None:
    axes.barh(place, line.value, height=0.56, color=_ROLE_INK[line.role], linewidth=0)
    if line.interval:
        low, high = line.interval
        axes.plot([low, high], [place, place], color=_INK["text"], linewidth=1.4, solid_capstyle="butt")
        axes.plot([low, high], [place, place], color=_INK["text"], linestyle="none", marker="|", markersize=8)
    axes.text(_end_of(line) + gap, place, line.text, va="center", ha="left", fontweight="bold")


def _frame_bars(axes: Any, lines: Sequence[Bar], *, end: float, form: Form) -> None:
    axes.set_yticks(range(len(lines)), [line.label for line in lines], color=_INK["text"])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(0, 1.14 * end)
    if form == "percent":
        axes.set_xticks(np.linspace(0, 1, 6), [f"{tick} %" for tick in range(0, 101, 20)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=0)
    axes.grid(axis="x", linewidth=0.6)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _draw_curve(axes: Any, line: Curve) -> None:
    """A long noisy line is drawn faint, with its running mean over it."""
    ink, values = _ROLE_INK[line.role], np.asarray(line.values, dtype=np.float64)
    style = "--" if line.role == "baseline" else "-"
    if len(values) < _SMOOTH_FROM:
        marker = "o" if len(values) == 1 else None
        axes.plot(line.steps, values, style, color=ink, linewidth=1.8, marker=marker)
        return
    axes.plot(line.steps, values, color=ink, linewidth=0.8, alpha=0.3)
    axes.plot(line.steps, running_mean(values, len(values) // 30), style, color=ink, linewidth=1.8)


def running_mean(values: np.ndarray[Any, np.dtype[np.float64]], reach: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean over `reach` neighbours on each side; fewer at the ends, the same number on both sides."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    side = np.minimum(reach, np.minimum(places, len(values) - 1 - places))
    means: np.ndarray[Any, np.dtype[np.float64]] = (total[places + side + 1] - total[places - side]) / (2 * side + 1)
    return means


def _spans_decades(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_FROM


def _svg(figure: Figure, title: str) -> str:
    """The `<svg>` element alone: no size, no ids or styles that could touch the page, its ink named by variables."""
    target = io.StringIO()
    nothing = {"Creator": None, "Date": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(target, metadata=nothing)
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for pattern in _NOT_FOR_A_PAGE:
        text = re.sub(pattern, "", text, flags=re.DOTALL)
    for name, colour in (_INK | _ROLE_INK).items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
