"""The report's figures in words: numbers with their units, and the one sentence that says how the transfer went.

It claims no more than the intervals allow. It takes the report's JSON and knows neither HTML nor files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]
ABSENT = "–"


def percent(fraction: float | None) -> str:
    """0.972 -> `97.2 %`."""
    return ABSENT if fraction is None else f"{100 * fraction:.1f} %"


def points(fraction: float | None) -> str:
    """0.314 -> `+31.4 points`; of a difference between two fractions."""
    return ABSENT if fraction is None else f"{_signed(fraction)} points"


def interval(ci95: Sequence[float] | None) -> str:
    """[0.279, 0.348] -> `27.9 to 34.8`: fractions, said in per cent or points."""
    if ci95 is None:
        return ABSENT
    low, high = (_no_minus_zero(f"{100 * end:.1f}") for end in ci95)
    return f"{low} to {high}"


def number_interval(ci95: Sequence[float] | None) -> str:
    """[3.252, 3.3804] -> `3.252 to 3.380`."""
    return ABSENT if ci95 is None else f"{number(ci95[0])} to {number(ci95[1])}"


def number(value: float | None) -> str:
    """Four significant digits, thousands apart: `1.040`, `12,345`."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:#.4g}"


def compact(count: float | None) -> str:
    """1_700_000 -> `1.7 M`."""
    if count is None:
        return ABSENT
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def duration(seconds: float | None) -> str:
    """130 -> `2 min 10 s`."""
    if seconds is None:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def headline(document: Document) -> str:
    """How the transfer went, in a sentence or two."""
    student = document["metrics"].get("student", {})
    if student.get("exact_match") is not None:
        parts = [_exactness(document, student), _gain(document)]
    elif student.get("perplexity") is not None:
        parts = [_perplexity(document, student), _perplexity_gain(document)]
    else:
        parts = [_unmeasured(document), ""]
    return "".join(parts) + "."


def _exactness(document: Document, student: Document) -> str:
    if document["retention"] is not None:
        verb = "keeps" if document["retention"] <= 1 else "reaches"
        return f"The student {verb} {percent(document['retention'])} of its teacher's exact match{_size(document)}"
    said = f"{_subject(document)} answers {percent(student['exact_match'])} of {_questions(document)} right"
    return said + _with_interval(interval(student["exact_match_ci95"]))


def _questions(document: Document) -> str:
    return "its one question" if document["questions"] == 1 else f"{document['questions']:,} questions"


def _gain(document: Document) -> str:
    """Beats, falls short, or cannot be told apart: as the interval says."""
    gain, ci95 = document["gain"], document["gain_ci95"]
    if gain is None:
        return ""
    other = _other(document)
    if ci95 is not None and ci95[0] > 0:
        return f", and beats {other} by {100 * gain:.1f} points{_with_interval(interval(ci95))}"
    if ci95 is not None and ci95[1] < 0:
        shortfall = interval([-ci95[1], -ci95[0]])
        return f", but falls short of {other} by {100 * -gain:.1f} points{_with_interval(shortfall)}"
    return f", but cannot be told apart from {other}: {points(gain)}{_with_interval(interval(ci95))}"


def _perplexity(document: Document, student: Document) -> str:
    said = f"{_subject(document)} reaches a perplexity of {number(student['perplexity'])}"
    teacher = document["metrics"].get("teacher", {}).get("perplexity")
    if teacher is None:
        return said + _with_interval(number_interval(student["perplexity_ci95"]))
    return f"{said} where its teacher has {number(teacher)}{_size(document)}"


def _perplexity_gain(document: Document) -> str:
    """Lower is better, so below 1 is a gain."""
    ratio, ci95 = document["perplexity_to_baseline"], document["perplexity_to_baseline_ci95"]
    if ratio is None:
        return ""
    other = _other(document)
    change = f"{percent(abs(1 - ratio))} {'lower' if ratio <= 1 else 'higher'} than that of {other}"
    if ci95 is None or ci95[0] <= 1 <= ci95[1]:
        return f"; that is {change}, which the data cannot tell from no difference"
    bounds = sorted(abs(1 - end) for end in ci95)
    return f"; that is {change}{_with_interval(interval(bounds), unit=' %')}"


def _unmeasured(document: Document) -> str:
    training = document["training"].get("student")
    if training is None:
        return "Nothing was measured"
    steps, loss = f"{training['steps']:,} steps", number(training["loss"])
    return f"{_subject(document)} was trained for {steps} to a loss of {loss}; it was not evaluated"


def _size(document: Document) -> str:
    """` with 17 % of its parameters`; nothing where the two are alike or a size is not known."""
    teacher, student = (document["parameters"].get(role) for role in ("teacher", "student"))
    if not teacher or not student or student == teacher:
        return ""
    share = student / teacher
    return (
        f" with {two_digits(100 * share)} % of its parameters"
        if share < 1
        else f" with {share:.2g} times its parameters"
    )


def two_digits(value: float) -> str:
    """17.3 -> `17`, 0.83 -> `0.83`."""
    return f"{value:.0f}" if value >= 9.5 else f"{value:.2g}"


def _subject(document: Document) -> str:
    return "The student" if is_transfer(document) else "The model"


def _other(document: Document) -> str:
    return "the same student without a teacher" if is_transfer(document) else "the baseline"


def is_transfer(document: Document) -> bool:
    """Whether there was a teacher."""
    return bool(document["kind"] == "Distill")


def _with_interval(ends: str, *, unit: str = "") -> str:
    return "" if ends == ABSENT else f" (95 % interval {ends}{unit})"


def _signed(fraction: float) -> str:
    return _no_minus_zero(f"{100 * fraction:+.1f}")


def _no_minus_zero(text: str) -> str:
    return text.lstrip("-") if float(text) == 0 else text
