"""Latency over time with what happened marked on it, and memory below, as one picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.endurance.crowd import Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WINDOW_S = 2.0
_COLOURS = {"killed": "tab:red", "update": "tab:blue", "canary": "tab:green"}


def draw(
    path: Path,
    answers: Sequence[Answer],
    events: Sequence[tuple[float, str]],
    memory_mib: Sequence[tuple[float, float, float]],
) -> None:
    """`events`: (when, what); `memory_mib`: (when, of the gateway, of all replicas)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(12, 7), height_ratios=[3, 1])
    _latencies(above, answers)
    for at_s, what in events:
        colour = next((colour for word, colour in _COLOURS.items() if word in what), "grey")
        is_kill = "killed" in what
        above.axvline(at_s, color=colour, linewidth=0.8, linestyle=":" if is_kill else "-")
        if not is_kill:
            at_top = above.get_xaxis_transform()
            above.text(at_s, 0.99, f"{what} ", transform=at_top, rotation=90, va="top", fontsize=7, color=colour)
    below.plot([at for at, _, _ in memory_mib], [own for _, own, _ in memory_mib], label="gateway")
    below.plot([at for at, _, _ in memory_mib], [all_ for _, _, all_ in memory_mib], label="replicas and judge")
    below.set_ylabel("memory, MiB")
    below.set_xlabel("seconds; dotted red: a replica was killed")
    below.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _latencies(axes: Axes, answers: Sequence[Answer]) -> None:
    windows: dict[int, list[float]] = {}
    for each in answers:
        windows.setdefault(int(each.at_s / _WINDOW_S), []).append(each.latency_s)
    times = [(window + 0.5) * _WINDOW_S for window in sorted(windows)]
    axes.scatter([each.at_s for each in answers], [each.latency_s for each in answers], s=2, alpha=0.25, color="grey")
    axes.plot(times, [statistics.median(windows[window]) for window in sorted(windows)], label="median of 2 s")
    bad = [each for each in answers if each.failure and not each.is_refused]
    axes.scatter([each.at_s for each in bad], [each.latency_s for each in bad], color="red", marker="x", label="failed")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylabel("latency of whole answers, seconds")
    axes.legend(fontsize=7, loc="lower right")
