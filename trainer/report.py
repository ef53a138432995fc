"""The transfer report of one finished job: report.json for programs, report.html for people, rows for a terminal.

Reads what the run left in its directory (answers, metrics, models, prepared data); measures and trains nothing, and
loads no torch. What is not there is None or left out, so that a job of any kind and any metrics has a report.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer import wording
from trainer.atomic import write_json, write_text
from trainer.job import JobContext
from trainer.spec import DistillSpec
from trainer.transfer import ROLES, Answers, outcome, read_answers, read_jsonl, shared_ids, summary

LEARNERS = ("student", "baseline")
_NUM_EXAMPLES = 6


@dataclass(frozen=True)
class Report:
    """The finished report: its figures, and where it was written."""

    document: Mapping[str, Any]
    """What report.json holds."""
    json_path: Path
    html_path: Path


def build_report(ctx: JobContext) -> Report:
    """Writes report.json and report.html for a job whose stages are done; the same files give the same report."""
    from trainer.page import render  # matplotlib and jinja2: not for those who only print rows

    document = report_document(ctx)
    report = Report(document, ctx.report_dir / "report.json", ctx.report_dir / "report.html")
    write_json(report.json_path, document)
    write_text(report.html_path, render(document, {role: learning_curve(ctx, role) for role in LEARNERS}))
    return report


def report_document(ctx: JobContext) -> dict[str, Any]:
    """All figures of the report, as report.json holds them."""
    learners = [role for role in LEARNERS if ctx.model_dir(role).is_dir() or ctx.metrics_path(role).is_file()]
    document = {
        "job": ctx.uid,
        "kind": ctx.kind,
        **summary(ctx),
        "bootstrap": {"draws": ctx.spec.evaluate.bootstrap_samples, "seed": ctx.spec.training.seed},
        "parameters": _parameters(ctx, learners),
        "training": {role: _training(ctx, role) for role in learners},
        "data": _data_counts(ctx),
        "lineage": _lineage(ctx),
        "examples": examples(read_answers(ctx.job_dir)),
        "spec": ctx.spec.model_dump(mode="json"),
    }
    return {"headline": wording.headline(document), **document}


def learning_curve(ctx: JobContext, role: str) -> list[dict[str, Any]]:
    """The logged steps in order."""
    return read_jsonl(ctx.metrics_path(role))


def _training(ctx: JobContext, role: str) -> dict[str, Any] | None:
    return training_figures(learning_curve(ctx, role), _record(ctx.role_dir(role)))


def training_figures(curve: Sequence[Mapping[str, Any]], done: Mapping[str, Any]) -> dict[str, Any] | None:
    """Steps, tokens, seconds spent stepping (pauses left out), loss; None for a learner that logged nothing.

    `done`: what the finished learner says of itself, which is exact; without it the curve is added up.
    """
    if not curve:
        return None
    seconds = done.get("seconds") or _seconds(curve)
    tokens = int(done.get("tokens") or curve[-1]["tokens"])
    return {
        "steps": int(done.get("steps") or curve[-1]["step"]),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "loss": curve[-1]["loss"],
    }


def _seconds(curve: Sequence[Mapping[str, Any]]) -> float:
    """Between two records: the tokens of that stretch over its speed."""
    before, seconds = 0, 0.0
    for line in curve:
        if line["tokens_per_second"] > 0:
            seconds += (line["tokens"] - before) / line["tokens_per_second"]
        before = line["tokens"]
    return seconds


def examples(answers: Answers) -> list[dict[str, Any]]:
    """A few questions with every answer: one of each combination of right and wrong, the frequent ones first."""
    roles = list(answers)
    kinds: dict[tuple[bool, ...], list[int]] = {}
    for sample_id in shared_ids(answers, ("exact_match",)):
        kinds.setdefault(outcome(answers, roles, sample_id), []).append(sample_id)
    return [_example(answers, sample_id, len(kinds[kind])) for kind, sample_id in _round_robin(kinds)]


def _round_robin(kinds: Mapping[tuple[bool, ...], Sequence[int]]) -> list[tuple[tuple[bool, ...], int]]:
    """One sample of each kind in turn, spread over the kind's samples, until there are enough."""
    ordered = sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind))
    picked: list[tuple[tuple[bool, ...], int]] = []
    for turn in range(_NUM_EXAMPLES):
        for kind in ordered:
            ids = kinds[kind]
            if turn < len(ids) and len(picked) < _NUM_EXAMPLES:
                picked.append((kind, ids[turn * max(1, len(ids) // _NUM_EXAMPLES)]))
    return sorted(picked, key=lambda pick: ordered.index(pick[0]))


def _example(answers: Answers, sample_id: int, alike: int) -> dict[str, Any]:
    any_answer = next(iter(answers.values()))[sample_id]
    given = {
        role: {"completion": _sound(of_role[sample_id]["completion"]), "right": bool(of_role[sample_id]["exact_match"])}
        for role, of_role in answers.items()
    }
    question = {name: _sound(any_answer[name]) for name in ("prompt", "reference")}
    return {"sample_id": sample_id, **question, "answers": given, "samples_alike": alike}


def _sound(text: str) -> str:
    """Half a surrogate pair, which JSON may hold and no file can, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _parameters(ctx: JobContext, learners: Sequence[str]) -> dict[str, int | None]:
    directories = {"teacher": _local_directory(ctx.teacher)} if ctx.teacher else {}
    directories |= {role: ctx.model_dir(role) for role in learners}
    return {role: None if path is None else count_parameters(path) for role, path in directories.items()}


def _local_directory(source: str) -> Path | None:
    """A model's directory; of a hub id its cached snapshot, if it was fetched on this machine."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache  # only for hub ids

    cached = try_to_load_from_cache(source, "config.json")
    return Path(cached).parent if isinstance(cached, str) else None


def count_parameters(model_dir: Path) -> int | None:
    """Numbers in a model's safetensors files, read from their headers; tied weights are stored, and count, once."""
    counts = [_count_in_file(path) for path in sorted(model_dir.glob("*.safetensors"))]
    return sum(counts) if counts else None


def _count_in_file(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _lineage(ctx: JobContext) -> dict[str, Any]:
    """Where the student comes from: job, teacher's version, data, version of this software."""
    attempt = _last_attempt(ctx)
    named = attempt.get("models", {})
    teacher = ctx.spec.teachers[0].model if isinstance(ctx.spec, DistillSpec) else None
    start = ctx.spec.student.model
    return {
        "job": ctx.uid,
        "attempt": attempt.get("attempt"),
        "teacher": teacher and _version_of(teacher, named),
        "started_from": start and _version_of(start, named),
        "data": ctx.spec.data.train,
        "data_fingerprint": _record(ctx.prepared_dir).get("data_fingerprint", {}),
        "athanor": _own_version(),
    }


def _last_attempt(ctx: JobContext) -> dict[str, Any]:
    """What the control plane said about the newest attempt; nothing for a job run by hand."""
    paths = (ctx.job_dir / "attempts").glob("*/attempt.json")
    newest = max(paths, key=lambda path: int(path.parent.name), default=None)
    return json.loads(newest.read_text(encoding="utf-8")) if newest else {}


def _version_of(reference: str, named: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """`support-teacher@champion`, and the version this alias meant when the job started."""
    return {"asked": reference, "version": named.get(reference, {}).get("reference", reference)}


def _data_counts(ctx: JobContext) -> dict[str, dict[str, int]]:
    """For each set: rows, samples, cut and dropped ones; with written labels those of the finished training set."""
    counts = dict(_record(ctx.prepared_dir).get("counts", {}))
    written = _record(ctx.labels_dir).get("counts")
    return counts | {"train": _with_labels(counts.get("train", {}), written)} if written else counts


def _with_labels(asked: Mapping[str, int], written: Mapping[str, int]) -> dict[str, int]:
    """Of all rows: those that were asked of the teacher, and what became of its answers."""
    lost = {name: asked.get(name, 0) + written[name] for name in ("cut", "dropped")}
    return {"rows": asked.get("rows", written["rows"]), "samples": written["samples"], **lost}


def _record(directory: Path) -> dict[str, Any]:
    """What a finished stage wrote down about itself."""
    path = directory / "done.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _own_version() -> str | None:
    try:
        return version("athanor-cluster")
    except PackageNotFoundError:
        return None


def table_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Report.json as a table for a terminal: a row of headings, then one for each model."""
    headings = ("model", "parameters", "exact match", "95 % interval", "perplexity", "transfer")
    return [headings, *(_table_row(report, role) for role in ROLES if role in _roles(report))]


def _roles(report: Mapping[str, Any]) -> set[str]:
    return {*report["metrics"], *report["training"]}


def _table_row(report: Mapping[str, Any], role: str) -> tuple[str, ...]:
    metrics = report["metrics"].get(role, {})
    return (
        role if wording.is_transfer(report) or role != "student" else "model",
        wording.compact(report["parameters"].get(role)),
        wording.percent(metrics.get("exact_match")),
        wording.interval(metrics.get("exact_match_ci95")),
        wording.number(metrics.get("perplexity")),
        _transfer_cell(report, role),
    )


def _transfer_cell(report: Mapping[str, Any], role: str) -> str:
    """Retention beside the student, the gain over it beside the baseline."""
    if role == "student" and report["retention"] is not None:
        return f"keeps {wording.percent(report['retention'])}{_bracketed(report['retention_ci95'])}"
    if role == "baseline" and report["gain"] is not None:
        return f"student {wording.points(report['gain'])}{_bracketed(report['gain_ci95'])}"
    return ""


def _bracketed(ci95: Sequence[float] | None) -> str:
    return "" if ci95 is None else f" ({wording.interval(ci95)})"
