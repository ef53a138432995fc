"""One learner from its first weights (or its last good checkpoint) to a finished model directory.

Called by every worker of the job; may be called again at any time: what is finished is not done twice.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from trainer import atomic
from trainer.attention import choose_attention
from trainer.checkpoint import Checkpoint, CheckpointWriter, Progress, Topology, latest_good, read
from trainer.curves import FigureLog
from trainer.device import trim_memory
from trainer.engine import ENGINES, Engine
from trainer.errors import TrainerError
from trainer.faculty import Faculty
from trainer.feed import Feed
from trainer.job import JobContext
from trainer.learner import Learner
from trainer.listener import Listener
from trainer.loop import Run, run
from trainer.models import (
    DTYPES,
    check_head,
    check_length,
    check_rows,
    checkpoint_activations,
    fresh_model,
    keeps_samples_apart,
    load_model,
    num_parameters,
    packing_refused,
    positions_of,
    write_model,
)
from trainer.objective import Objective, Together, learn_tokens, learns_from_teacher
from trainer.order import SampleOrder
from trainer.peers import Peers
from trainer.prepared import Prepared
from trainer.sample_log import SampleLog
from trainer.spec import DistillSpec
from trainer.taps import shape_of
from trainer.teaching import Teaching


@dataclass(frozen=True)
class FitResult:
    """What `done.json` of a role says."""

    steps: int
    tokens: int
    """Seen by all workers, padding not counted."""
    seconds: float
    num_parameters: int
    loss: float
    """Of the last step."""


def fit(
    ctx: JobContext,
    role: str,
    peers: Peers,
    faculty: Faculty | None,
    listener: Listener,
    *,
    engine: str = "deepspeed",
) -> FitResult:
    """Trains `role` ("student" or "baseline") and writes its model. Collective."""
    done = finished(ctx, role, peers)
    if done is not None:
        return done
    prepared = Prepared.open(ctx)
    feed, model = _feed(ctx, role, prepared, peers), first_model(ctx, prepared)
    objective, teaching = _lessons(ctx, role, len(prepared.tokenizer), feed, model, faculty, listener)
    topology = Topology(peers.world, ctx.spec.training.zero_stage, ctx.spec.training.precision, engine)
    found = _agreed_checkpoint(ctx, role, topology, peers, listener)
    size, driving = num_parameters(model), _engine(ctx, engine, model, objective, found, peers)
    progress = _resume(role, driving, found, peers, listener)
    trim_memory()
    steps = Run(
        role=role,
        engine=driving,
        feed=feed,
        training=ctx.spec.training,
        checkpoint=ctx.spec.checkpoint,
        total_steps=_total_steps(ctx, role, feed.order),
        peers=peers,
        objective=objective,
        teaching=teaching,
        listener=listener,
        metrics=FigureLog(ctx.metrics_path(role), step=progress.step) if peers.is_first else None,
        checkpoints=_writer(ctx, role, topology, peers),
        samples=_sample_log(ctx, role, peers, progress),
    )
    progress = run(steps, progress)
    weights = driving.model_state()
    driving.close()
    result = FitResult(progress.step, progress.tokens, progress.seconds, size, progress.loss)
    if peers.is_first:
        write_model(ctx.model_dir(role), model, weights, prepared.tokenizer)
        atomic.write_json(_done_path(ctx, role), asdict(result))
    peers.barrier()
    return result


def finished(ctx: JobContext, role: str, peers: Peers) -> FitResult | None:
    """What an earlier attempt has finished; the same answer on every worker. Collective."""
    path = _done_path(ctx, role)
    document = json.loads(path.read_text()) if peers.is_first and path.is_file() else None
    agreed = peers.broadcast(document)
    return None if agreed is None else FitResult(**agreed)


def first_model(ctx: JobContext, prepared: Prepared) -> PreTrainedModel:
    """The weights before step 0, in float32: the same for student and baseline."""
    student, data = ctx.spec.student, ctx.spec.data
    name = student.model or "the fresh student"
    if student.model is None:
        assert student.config is not None
        model = fresh_model(student.config, prepared.tokenizer, ctx.spec.training.seed)
    else:
        model = load_model(ctx.resolve_model(student.model), torch.float32)
        check_rows(model, len(prepared.tokenizer), name)
    check_head(model, name)
    check_length(positions_of(model.config), data.max_length, name)
    if data.packing_strategy != "none" and not keeps_samples_apart(model):
        raise packing_refused(model, name)
    if ctx.spec.training.gradient_checkpointing:
        checkpoint_activations(model, name)
    return model


def _lessons(
    ctx: JobContext,
    role: str,
    num_tokens: int,
    feed: Feed,
    model: PreTrainedModel,
    faculty: Faculty | None,
    listener: Listener,
) -> tuple[Objective, Teaching | None]:
    """What is minimised, and what the teachers are asked for; the same on every worker."""
    spec = ctx.spec
    if not learns_from_teacher(spec, role):
        return learn_tokens(None, num_tokens), None
    assert isinstance(spec, DistillSpec)
    if faculty is None:
        raise TrainerError("TEACHER_MISSING", f"{role} learns from a teacher and none was given")
    teaching = Teaching.settle(spec, faculty, feed.probe(), shape_of(model), feed.peers)
    if feed.peers.is_first:
        listener.event("TEACHER_PAYLOAD", f"{role}: {teaching.why}")
        for sentence in teaching.loaded_whole:
            listener.event("TEACHER_LOADED_WHOLE", sentence)
    tokens = learn_tokens(spec.objective, num_tokens)
    return (Together([tokens, *teaching.matches]) if teaching.matches else tokens), teaching


def _engine(
    ctx: JobContext, name: str, model: PreTrainedModel, objective: Objective, found: Checkpoint | None, peers: Peers
) -> Engine:
    """Around the first weights, or those of the checkpoint."""
    training = ctx.spec.training
    torch.manual_seed(training.seed + peers.rank)
    if found is not None:
        model.load_state_dict(found.weights(), strict=False)  # tied weights are there once
    choose_attention(model, ctx.spec.data.max_length, DTYPES[training.precision])
    return ENGINES[name](Learner(model.train(), objective), training, peers)


def _feed(ctx: JobContext, role: str, prepared: Prepared, peers: Peers) -> Feed:
    training, data, samples = ctx.spec.training, ctx.spec.data, prepared.samples(role)
    order = SampleOrder(
        samples.lengths,
        seed=training.seed,
        batch_tokens=training.batch_tokens,
        max_length=data.max_length,
        packing_strategy=data.packing_strategy,
    )
    return Feed(samples, order, peers, training.micro_batch_tokens, prepared.pad_id)


def _total_steps(ctx: JobContext, role: str, order: SampleOrder) -> int:
    """The spec's; a baseline without its own number takes as many steps as the student took."""
    if role == "baseline":
        settings = ctx.spec.evaluate.baseline_settings
        if settings is not None and settings.max_steps is not None:
            return settings.max_steps
        return int(json.loads(_done_path(ctx, "student").read_text())["steps"])
    training = ctx.spec.training
    return training.max_steps or order.steps_for_epochs(training.num_epochs or 1.0)


def _agreed_checkpoint(
    ctx: JobContext, role: str, topology: Topology, peers: Peers, listener: Listener
) -> Checkpoint | None:
    """The one that the first worker finds, on all of them; CheckpointError if it does not fit. Collective."""
    directory = ctx.checkpoints_dir(role)
    found = latest_good(directory, listener) if peers.is_first else None
    name = peers.broadcast(found.path.name if found else None)
    if name is None:
        return None
    found = found or read(directory / name)
    found.require(topology)
    return found


def _resume(role: str, engine: Engine, found: Checkpoint | None, peers: Peers, listener: Listener) -> Progress:
    if found is None:
        return Progress()
    engine.load_state(found.shard(peers.rank))
    if peers.is_first:
        listener.event("RESUMED", f"{role}: goes on after step {found.progress.step}")
    return found.progress


def _writer(ctx: JobContext, role: str, topology: Topology, peers: Peers) -> CheckpointWriter:
    spec = ctx.spec.model_dump(mode="json", by_alias=True)
    directory, keep = ctx.checkpoints_dir(role), ctx.spec.checkpoint.keep
    return CheckpointWriter(directory, keep=keep, topology=topology, spec=spec, peers=peers)


def _sample_log(ctx: JobContext, role: str, peers: Peers, progress: Progress) -> SampleLog | None:
    path = ctx.samples_path(role, peers.rank)
    return SampleLog(path, step=progress.step) if ctx.spec.training.log_sample_ids else None


def _done_path(ctx: JobContext, role: str) -> Path:
    return ctx.role_dir(role) / "done.json"
