"""The report as one page of HTML that needs nothing beside itself: no script, no font, no link to elsewhere.

Lays the report's JSON out for `report.html.j2`. What models wrote is untrusted text: the template escapes everything
but the pictures drawn here. It measures nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any, get_args

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trainer import pictures, wording
from trainer.objective_spec import DivergenceName
from trainer.transfer import ROLES

Document = Mapping[str, Any]
Curve = Sequence[Mapping[str, Any]]
Points = Sequence[tuple[int, float]]

_LONGEST_TEXT = 700
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=[%kMBT](?!\w))")
_TERM_TITLES = {
    "cross_entropy": "Cross-entropy",
    "distillation": "Divergence and cross-entropy mixed",
    **dict.fromkeys(get_args(DivergenceName), "Divergence from the teacher"),
}


def render(document: Document, learning: Mapping[str, Curve]) -> str:
    """The page. `learning`: role -> the logged steps of its training, in order."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": clip, "spaced": spaced}
    environment.globals |= {"words": wording}
    return environment.get_template("report.html.j2").render(
        report=document,
        kind="Transfer" if wording.is_transfer(document) else "Training",
        models=[_model(document, role) for role in ROLES if role in _roles(document)],
        labels=labels(document),
        bars=bar_pictures(document),
        curves=curve_pictures(learning, labels(document)),
        keys=_key_figures(document),
        spec=yaml.safe_dump(document["spec"], sort_keys=False, allow_unicode=True),
    )


def labels(document: Document) -> dict[str, str]:
    """What each role is called on the page."""
    if wording.is_transfer(document):
        return {"teacher": "Teacher", "student": "Student", "baseline": "Student alone"}
    return {"teacher": "Teacher", "student": "Model", "baseline": "Baseline"}


def clip(text: str) -> str:
    """At most 700 characters; what was left out is counted."""
    left_out = len(text) - _LONGEST_TEXT
    return text if left_out <= 0 else f"{text[:_LONGEST_TEXT]} … ({left_out:,} more characters)"


def spaced(text: str) -> str:
    """Keeps a number and its unit on one line."""
    return _BEFORE_UNIT.sub("\u202f", text)


def _roles(document: Document) -> set[str]:
    return {*document["metrics"], *document["training"]}


def _model(document: Document, role: str) -> dict[str, Any]:
    """One line of the table."""
    metrics = document["metrics"].get(role, {})
    return {
        "role": role,
        "label": labels(document)[role],
        "note": _note(document, role),
        "parameters": wording.compact(document["parameters"].get(role)),
        "exact_match": wording.percent(metrics.get("exact_match")),
        "exact_match_ci95": wording.interval(metrics.get("exact_match_ci95")),
        "perplexity": wording.number(metrics.get("perplexity")),
        "perplexity_ci95": wording.number_interval(metrics.get("perplexity_ci95")),
    }


def _note(document: Document, role: str) -> str:
    """What sets a model apart: the teacher's version; who a learner learned from, and from how many samples."""
    if role == "teacher":
        return str((document["lineage"]["teacher"] or {}).get("version", ""))
    counts = document["data"].get("train" if role == "student" else role)
    amount = f"{counts['samples']:,} samples" if counts else ""
    if not wording.is_transfer(document):
        return amount
    source = "taught by the teacher" if role == "student" else "no teacher, labels only"
    return ", ".join(part for part in (source, amount) if part)


def _key_figures(document: Document) -> list[dict[str, str]]:
    """The two to four numbers to remember; those that were not measured are left out."""
    student = document["metrics"].get("student", {})
    exact_match = (wording.percent(student.get("exact_match")), "exact match", _range(student.get("exact_match_ci95")))
    retention = (wording.percent(document["retention"]), "of the teacher kept", _range(document["retention_ci95"]))
    other = labels(document)["baseline"].lower()
    gain = (wording.points(document["gain"]), f"over the {other}", _range(document["gain_ci95"]))
    first = exact_match if document["retention"] is None else retention
    found = [first, gain, _size_figure(document["parameters"]), _time_figure(document["training"].get("student"))]
    return [
        {"figure": figure, "name": name, "detail": detail} for figure, name, detail in found if figure != wording.ABSENT
    ]


def _size_figure(parameters: Mapping[str, int | None]) -> tuple[str, str, str]:
    teacher, student = (parameters.get(role) for role in ("teacher", "student"))
    if not teacher or not student:
        return wording.compact(student), "parameters", ""
    detail = f"{wording.compact(student)} of {wording.compact(teacher)}"
    return f"{wording.two_digits(100 * student / teacher)} %", "of its parameters", detail


def _time_figure(training: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if training is None:
        return wording.ABSENT, "", ""
    return wording.duration(training["seconds"]), "of training", f"{training['steps']:,} steps"


def _range(ci95: Sequence[float] | None) -> str:
    return "" if ci95 is None else f"95 % interval {wording.interval(ci95)}"


def bar_pictures(document: Document) -> list[dict[str, Any]]:
    """A bar picture for each metric that was measured."""
    wanted: list[tuple[str, pictures.Form, list[pictures.Bar]]] = [
        ("Exact match", "percent", _bars_of(document, "exact_match", wording.percent)),
        ("Perplexity (lower is better)", "number", _bars_of(document, "perplexity", wording.number)),
    ]
    found = [(title, form, lines) for title, form, lines in wanted if lines]
    return [
        {"title": title, "svg": Markup(pictures.bars(lines, form=form, title=title, wide=len(found) == 1))}
        for title, form, lines in found
    ]


def _bars_of(document: Document, metric: str, words: Callable[[float], str]) -> list[pictures.Bar]:
    named = labels(document)
    found = [(role, document["metrics"].get(role, {})) for role in ROLES]
    return [
        pictures.Bar(role, named[role], metrics[metric], metrics[f"{metric}_ci95"], words(metrics[metric]))
        for role, metrics in found
        if metrics.get(metric) is not None
    ]


def curve_pictures(learning: Mapping[str, Curve], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """The loss of every learner, then each of its terms that is not just the loss again."""
    lines_of_all = [line for curve in learning.values() for line in curve]
    wanted = {"Loss": {role: _losses(curve) for role, curve in learning.items()}}
    for term in sorted({term for line in lines_of_all for term in line["terms"]}):
        if any(not isclose(line["terms"].get(term, line["loss"]), line["loss"]) for line in lines_of_all):
            title = _TERM_TITLES.get(term, term)
            wanted[title] = {role: _term_values(curve, term) for role, curve in learning.items()}
    found = [(title, lines) for title, series in wanted.items() if (lines := _lines(series, named))]
    return [
        {
            "title": title,
            "svg": Markup(pictures.curves(lines, title=title, wide=len(found) == 1)),
            "roles": [line.role for line in lines],
        }
        for title, lines in found
    ]


def _losses(curve: Curve) -> Points:
    return [(line["step"], line["loss"]) for line in curve]


def _term_values(curve: Curve, term: str) -> Points:
    return [(line["step"], line["terms"][term]) for line in curve if term in line["terms"]]


def _lines(series: Mapping[str, Points], named: Mapping[str, str]) -> list[pictures.Curve]:
    """One curve for each learner that has points."""
    return [
        pictures.Curve(role, named[role], [step for step, _ in points], [value for _, value in points])
        for role, points in series.items()
        if points
    ]
