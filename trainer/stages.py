"""A whole job in order: the teacher writes labels (seq_kd), the student learns, the baseline learns, all are examined.

Every worker calls `run_stages`; each stage finds what an earlier attempt has finished and passes it by.
"""

from __future__ import annotations

import gc

from trainer.errors import TrainerError
from trainer.evaluate import EvaluationSet, evaluate
from trainer.fit import fit
from trainer.generate import group_size
from trainer.job import JobContext
from trainer.labels import LabelWriter, read_labels
from trainer.listener import Listener, Stopped
from trainer.peers import Peers
from trainer.prepare import Prepared, finish_labels
from trainer.spec import DistillSpec
from trainer.teacher import LocalTeacher, Teacher, TeacherModel


def run_stages(
    ctx: JobContext, peers: Peers, teacher: Teacher | None, listener: Listener, *, engine: str = "deepspeed"
) -> None:
    """Needs `prepare(ctx)` done before, and a teacher for a Distill job. Collective."""
    if isinstance(ctx.spec, DistillSpec) and teacher is None:
        raise TrainerError("TEACHER_MISSING", "a Distill job needs its teacher")
    if ctx.has_written_labels:
        assert teacher is not None
        write_labels(ctx, peers, teacher, listener)
    roles = ["student"] if ctx.spec.evaluate.baseline_settings is None else ["student", "baseline"]
    for role in roles:
        fit(ctx, role, peers, teacher, listener, engine=engine)
        gc.collect()
    for role in roles:
        _examine_learner(ctx, role, peers, listener)
    if teacher is not None:
        _examine(ctx, "teacher", teacher, peers, listener)


def write_labels(ctx: JobContext, peers: Peers, teacher: Teacher, listener: Listener) -> None:
    """The teacher completes the training prompts that no earlier attempt has; the result becomes the training set."""
    prompts = Prepared.open(ctx).prompts
    known = read_labels(ctx.labels_dir) if peers.is_first else {}
    written = set(peers.broadcast(sorted(known)))
    missing = [prompt for prompt in prompts if prompt.sample_id not in written]
    missing.sort(key=lambda prompt: len(prompt.input_ids), reverse=True)
    mine, longest = missing[peers.rank :: peers.world], _longest_label(ctx)
    with LabelWriter(ctx.label_path(peers.rank), max_new_tokens=longest) as labels:
        size = group_size([prompt.input_ids for prompt in mine], longest)
        for start in range(0, len(mine), size):
            group = mine[start : start + size]
            answers = teacher.generate([prompt.input_ids for prompt in group], longest)
            for prompt, answer in zip(group, answers, strict=True):
                labels.write(prompt.sample_id, answer)
            labels.flush()
            if peers.is_first:
                done = len(written) + min(len(missing), (start + len(group)) * peers.world)
                listener.progress("label", done, len(prompts))
            _stop_if_asked(listener)
    peers.barrier()
    if peers.is_first:
        finish_labels(ctx)
    peers.barrier()


def _longest_label(ctx: JobContext) -> int:
    """Tokens of a written label: as long as answers may be in the evaluation, and within a sample."""
    return min(ctx.spec.evaluate.max_new_tokens, ctx.spec.data.max_length - 1)


def _stop_if_asked(listener: Listener) -> None:
    """What is written so far is kept, and the next attempt goes on after it."""
    if listener.should_stop():
        raise Stopped("STOPPED", "asked to stop while the teacher was writing labels")


def _examine_learner(ctx: JobContext, role: str, peers: Peers, listener: Listener) -> None:
    """The finished model as anyone would load it; every worker holds a copy."""
    if peers.any(ctx.evaluation_path(role).is_file()):
        return
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[ctx.spec.training.precision]
    learner = LocalTeacher(TeacherModel(str(ctx.model_dir(role)), dtype=dtype))
    _examine(ctx, role, learner, peers, listener)


def _examine(ctx: JobContext, role: str, model: Teacher, peers: Peers, listener: Listener) -> None:
    questions = EvaluationSet.of(Prepared.open(ctx))
    evaluate(ctx, role, questions, model.generate, model.score, peers, listener)
