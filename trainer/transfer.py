"""How much was transferred: the figures of teacher, student and baseline, out of the answers kept by `evaluate`.

Retention is student / teacher, gain is student - baseline, both of exact match, both paired over the same samples.
Figures are fractions, never per cent. What was not measured is None. It writes nothing and loads no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.bootstrap import UNDEFINED, Estimate, PairedBootstrap
from trainer.job import JobContext

ROLES = ("teacher", "student", "baseline")

Answer = Mapping[str, Any]
Answers = Mapping[str, Mapping[int, Answer]]
"""Role -> sample id -> one line of `evaluation/<role>.jsonl`."""


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON Lines file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def read_answers(job_dir: Path) -> Answers:
    """Every role that was evaluated, with its answers by sample id."""
    files = {role: read_jsonl(job_dir / "evaluation" / f"{role}.jsonl") for role in ROLES}
    return {role: {int(answer["sample_id"]): answer for answer in lines} for role, lines in files.items() if lines}


def summary(ctx: JobContext) -> dict[str, Any]:
    """The figures of the transfer, as they stand in the report's JSON."""
    draws, seed = ctx.spec.evaluate.bootstrap_samples, ctx.spec.training.seed
    return summarise(read_answers(ctx.job_dir), draws=draws, seed=seed)


def summarise(answers: Answers, *, draws: int, seed: int) -> dict[str, Any]:
    """Figures and intervals of every role, and of the roles against each other."""
    matches = _paired(answers, ("exact_match",), draws=draws, seed=seed)
    surprise = _paired(answers, ("nll", "tokens"), draws=draws, seed=seed)
    has_teacher, has_baseline = (both_in(answers, role) for role in ("teacher", "baseline"))
    return {
        "samples": len(shared_ids(answers, ())),
        "questions": len(shared_ids(answers, ("exact_match",))),
        "metrics": {role: _metrics(role, matches, surprise) for role in ROLES if role in answers},
        **_named("retention", _retention(matches) if has_teacher else UNDEFINED),
        **_named("gain", _gain(matches) if has_baseline else UNDEFINED),
        **_named("perplexity_to_teacher", _quotient(surprise, "teacher") if has_teacher else UNDEFINED),
        **_named("perplexity_to_baseline", _quotient(surprise, "baseline") if has_baseline else UNDEFINED),
        "outcomes": outcomes(answers),
    }


def both_in(answers: Answers, role: str) -> bool:
    return "student" in answers and role in answers


def outcomes(answers: Answers) -> list[dict[str, Any]]:
    """How often each combination of right and wrong came up, the most frequent first."""
    roles = [role for role in ROLES if role in answers]
    shared = shared_ids(answers, ("exact_match",))
    counts = Counter(outcome(answers, roles, sample_id) for sample_id in shared)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"right": dict(zip(roles, right, strict=True)), "samples": count} for right, count in ordered]


def outcome(answers: Answers, roles: Sequence[str], sample_id: int) -> tuple[bool, ...]:
    """Which of `roles` answered the sample exactly right."""
    return tuple(bool(answers[role][sample_id]["exact_match"]) for role in roles)


def _metrics(role: str, matches: PairedBootstrap | None, surprise: PairedBootstrap | None) -> dict[str, Any]:
    exact_match = matches.mean(f"{role}.exact_match") if matches else UNDEFINED
    perplexity = surprise.exp_ratio(f"{role}.nll", f"{role}.tokens") if surprise else UNDEFINED
    return {**_named("exact_match", exact_match), **_named("perplexity", perplexity)}


def _retention(matches: PairedBootstrap | None) -> Estimate:
    return matches.ratio("student.exact_match", "teacher.exact_match") if matches else UNDEFINED


def _gain(matches: PairedBootstrap | None) -> Estimate:
    return matches.mean_difference("student.exact_match", "baseline.exact_match") if matches else UNDEFINED


def _quotient(surprise: PairedBootstrap | None, other: str) -> Estimate:
    if surprise is None:
        return UNDEFINED
    return surprise.exp_ratio_quotient("student.nll", "student.tokens", f"{other}.nll", f"{other}.tokens")


def _paired(answers: Answers, fields: Sequence[str], *, draws: int, seed: int) -> PairedBootstrap | None:
    """The bootstrap over the samples for which every role has all of `fields`; None where there are none."""
    shared = shared_ids(answers, fields)
    if not shared:
        return None
    columns = {
        f"{role}.{field}": np.array([float(of_role[sample_id][field]) for sample_id in shared])
        for role, of_role in answers.items()
        for field in fields
    }
    return PairedBootstrap(columns, draws=draws, seed=seed)


def shared_ids(answers: Answers, fields: Sequence[str]) -> list[int]:
    """Sample ids for which every role carries all of `fields`, in order."""
    complete = [
        {sample_id for sample_id, answer in of_role.items() if all(answer.get(field) is not None for field in fields)}
        for of_role in answers.values()
    ]
    return sorted(set.intersection(*complete)) if complete else []


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    interval = None if estimate.ci95 is None else list(estimate.ci95)
    return {name: estimate.value, f"{name}_ci95": interval}
