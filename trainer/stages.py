"""A whole job in order: the teacher writes labels (seq_kd), the student learns, the baseline learns, all are examined.

Every worker calls `run_stages`; each stage finds what an earlier attempt has finished and passes it by.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence

from trainer.errors import TrainerError
from trainer.evaluate import EvaluationSet, evaluate
from trainer.faculty import Faculty
from trainer.fit import fit
from trainer.generate import group_size
from trainer.job import JobContext
from trainer.labels import LabelWriter, read_labels
from trainer.listener import Listener, stop_if_asked
from trainer.models import check_length, max_positions
from trainer.peers import Peers
from trainer.prepared import Prepared
from trainer.samples import Prompt
from trainer.spec import DistillSpec
from trainer.teacher import LocalTeacher, Teacher, TeacherModel

_LABEL_TOKENS = 256
"""Of a written completion, where the spec names no number."""
_LEAST_GROUPS = 16
"""Prompts are cut into at least so many groups, so that several workers have some each."""


def run_stages(
    ctx: JobContext, peers: Peers, faculty: Faculty | None, listener: Listener, *, engine: str = "deepspeed"
) -> None:
    """Needs `prepare(ctx)` done before, and the teachers of a Distill job. Collective."""
    if isinstance(ctx.spec, DistillSpec) and faculty is None:
        raise TrainerError("TEACHER_MISSING", "a Distill job needs its teachers")
    for teacher in ctx.teachers:
        check_length(max_positions(teacher), ctx.spec.data.max_length, teacher)
    if peers.is_first and not any(ctx.role_dir("student").glob("*")):
        for name, counts in Prepared.open(ctx).counts.items():
            _say_cut(name, counts, ctx, listener)
    if ctx.has_written_labels:
        assert faculty is not None
        write_labels(ctx, peers, faculty.first, listener)
    roles = ["student"] if ctx.spec.evaluate.baseline_settings is None else ["student", "baseline"]
    for role in roles:
        fit(ctx, role, peers, faculty, listener, engine=engine)
        gc.collect()
    for role in roles:
        _examine_learner(ctx, role, peers, listener)
    if faculty is not None:
        _examine(ctx, "teacher", faculty.first, peers, listener)


def write_labels(ctx: JobContext, peers: Peers, teacher: Teacher, listener: Listener) -> None:
    """The teacher completes the training prompts, group by group; the result becomes the training set.

    Groups that an earlier attempt has finished are passed by, others are done anew as they were cut.
    """
    prompts = list(Prepared.open(ctx).prompts)
    known = read_labels(ctx.labels_dir) if peers.is_first else {}
    written, longest = set(peers.broadcast(sorted(known))), longest_label(ctx, prompts)
    groups = label_groups(prompts, longest)
    missing = [group for group in groups if not written.issuperset(prompt.sample_id for prompt in group)]
    left = sum(len(group) for group in missing)
    mine, done = missing[peers.rank :: peers.world], 0
    with LabelWriter(ctx.label_path(peers.rank), max_new_tokens=longest) as labels:
        for group in mine:
            answers = teacher.generate([prompt.input_ids for prompt in group], longest)
            for prompt, answer in zip(group, answers, strict=True):
                labels.write(prompt.sample_id, answer)
            labels.flush()
            done += len(group)
            if peers.is_first:
                listener.progress("label", len(prompts) - left + min(left, done * peers.world), len(prompts))
            stop_if_asked(listener, "the teacher was writing labels")
    peers.barrier()
    if peers.is_first:
        _finish_labels(ctx, longest, listener)
    peers.barrier()


def label_groups(prompts: Sequence[Prompt], longest: int) -> list[list[Prompt]]:
    """Prompts that are completed together: a pure function of these two, so that attempts and workers do not matter.

    A completion may differ in its last bits with its group, so a resumed job must find the same ones.
    """
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.input_ids), prompt.sample_id))
    most = max(1, -(-len(ordered) // _LEAST_GROUPS))
    groups, start = [], 0
    while start < len(ordered):
        size = min(most, group_size([ordered[start].input_ids], longest))
        groups.append(ordered[start : start + size])
        start += size
    return groups


def longest_label(ctx: JobContext, prompts: Sequence[Prompt]) -> int:
    """Most tokens of a written completion: the spec's, within a sample."""
    assert isinstance(ctx.spec, DistillSpec)
    room = ctx.spec.data.max_length - min((len(prompt.input_ids) for prompt in prompts), default=0)
    return max(1, min(room, ctx.spec.objective.seq_kd_max_new_tokens or _LABEL_TOKENS))


def _finish_labels(ctx: JobContext, longest: int, listener: Listener) -> None:
    """The training set, made once; completions that were cut short are counted aloud."""
    from trainer.prepare import finish_labels  # it reads sources, and brings a library for that

    done = ctx.labels_dir / "done.json"
    if done.is_file():
        return
    finish_labels(ctx)
    _say_cut("written completions", json.loads(done.read_text())["counts"], ctx, listener)
    labels = read_labels(ctx.labels_dir)
    unended = sum(not ended for _, ended in labels.values())
    if unended:
        message = (
            f"{unended} of {len(labels)} written completions did not end within {longest} tokens and are learned "
            "without an end; raise objective.seq_kd_max_new_tokens or data.max_length"
        )
        listener.event("LABELS_UNENDED", message)


def _say_cut(name: str, counts: Mapping[str, int], ctx: JobContext, listener: Listener) -> None:
    """Samples that are shorter than their rows, or are none, are said before anything is learned of the others."""
    cut, dropped, most = counts["cut"], counts["dropped"], ctx.spec.data.max_length
    if cut or dropped:
        left = f"{cut} are cut to data.max_length ({most} tokens) and {dropped} dropped, as too little is left"
        message = f"{name}: of {counts['rows']} rows {left}"
        listener.event("DATA_CUT", message)


def _examine_learner(ctx: JobContext, role: str, peers: Peers, listener: Listener) -> None:
    """The finished model as anyone would load it; every worker holds a copy."""
    if peers.any(ctx.evaluation_path(role).is_file()):
        return
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[ctx.spec.training.precision]
    learner = LocalTeacher(TeacherModel(str(ctx.model_dir(role)), dtype=dtype))
    _examine(ctx, role, learner, peers, listener)


def _examine(ctx: JobContext, role: str, model: Teacher, peers: Peers, listener: Listener) -> None:
    whole, longest = EvaluationSet.of(Prepared.open(ctx)), ctx.spec.evaluate.max_new_tokens
    positions = _positions_of_all(ctx)
    questions = whole.with_room(positions, longest)
    dropped = len(whole.prompts) - len(questions.prompts)
    if dropped and role == "student" and peers.is_first:
        message = (
            f"{dropped} of {len(whole.prompts)} evaluation prompts are not asked: they leave no room for "
            f"evaluate.max_new_tokens ({longest}) within {positions} positions"
        )
        listener.event("EVALUATION_DROPPED", message)
    evaluate(ctx, role, questions, model.generate, model.score, peers, listener)


def _positions_of_all(ctx: JobContext) -> int | None:
    """What student and teacher both know, so that all models are asked the same questions."""
    sources = [str(ctx.model_dir("student")), *ctx.teachers]
    return min((found for source in sources if (found := max_positions(source)) is not None), default=None)
