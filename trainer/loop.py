"""The loop: micro-batch with the teacher's answer, forward, backward; at the end of a step agree, update, tell, save.

It knows neither how answers come nor how parameters are held. A step whose loss or gradient is not finite ends the run
before the update (I8).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.checkpoint import CheckpointWriter, Progress
from trainer.device import compute_device
from trainer.engine import Engine
from trainer.errors import UserError
from trainer.feed import Feed, MicroBatch, no_answers, with_answers
from trainer.learner import LOSS
from trainer.listener import Listener, Stopped
from trainer.objective import Needs, Objective, Step
from trainer.peers import Peers
from trainer.sample_log import SampleLog
from trainer.schedule import learning_rate
from trainer.spec import CheckpointSpec, TrainingSpec
from trainer.step_log import StepLog
from trainer.teaching import Teaching
from trainer.time_left import TimeLeft

_SILENT_S = 10.0
"""Nobody who watches waits longer for a word than this and a step, however few lines are logged."""


@dataclass(frozen=True)
class Run:
    """All that the loop of one learner needs."""

    role: str
    engine: Engine
    feed: Feed
    training: TrainingSpec
    checkpoint: CheckpointSpec
    total_steps: int
    peers: Peers
    objective: Objective
    teaching: Teaching | None
    listener: Listener
    metrics: StepLog | None
    """On the first worker."""
    checkpoints: CheckpointWriter
    samples: SampleLog | None = None
    clock: Callable[[], float] = time.time


def run(this: Run, progress: Progress) -> Progress:
    """From `progress` to the last step. Collective."""
    ask = this.teaching.request if this.teaching else no_answers
    micro_batches = this.feed.micro_batches(progress.step, this.total_steps)
    tally, told = _Tally(), _Told(this, progress)
    for micro_batch, answers in with_answers(micro_batches, ask, this.training.prefetch_depth):
        _check_whole(this, micro_batch)
        step = Step(this.feed.num_targets(micro_batch.step), progress.memory)
        sums = this.engine.forward(micro_batch.batch.to(compute_device()), answers, step)
        scale = this.peers.world / step.num_targets  # the engine takes the mean over workers
        this.engine.backward(sums[LOSS] * scale, last=micro_batch.last)
        tally.add(sums)
        if this.samples is not None:
            this.samples.add(micro_batch.step + 1, micro_batch.place, micro_batch.batch.sample_ids)
        if micro_batch.last:
            outcome = tally.agree(this, micro_batch)
            rate = learning_rate(micro_batch.step, this.total_steps, this.training)
            this.engine.step(rate)
            progress = told.tell(progress, outcome, rate)
            _save_if_due(this, progress, outcome)
            tally = _Tally()
    return progress


@dataclass(frozen=True)
class _Outcome:
    """What all workers agree on about one step."""

    terms: dict[str, float]
    """Means over the learned positions of all workers."""
    grad_norm: float
    stop: bool


@dataclass
class _Tally:
    """Sums of the micro-batches of one step."""

    sums: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, sums: dict[str, Tensor]) -> None:
        self.sums.append({name: one.detach() for name, one in sums.items()})

    def agree(self, this: Run, micro_batch: MicroBatch) -> _Outcome:
        """One exchange between the workers; UserError NON_FINITE_LOSS on all of them if one has lost its footing."""
        names = list(self.sums[0])
        stacked = torch.stack([torch.stack([one[name].double() for name in names]) for one in self.sums])
        stop = float(this.listener.should_stop())
        *totals, stops = this.peers.sum([*stacked.sum(dim=0).tolist(), stop])
        grad_norm = this.engine.grad_norm()
        if not all(math.isfinite(value) for value in (*totals, grad_norm)):
            raise _not_finite(this, micro_batch.step, stacked[:, names.index(LOSS)].tolist())
        count = this.feed.num_targets(micro_batch.step)
        return _Outcome({name: total / count for name, total in zip(names, totals, strict=True)}, grad_norm, stops > 0)


@dataclass
class _Told:
    """Counts tokens and time, and tells them: a line in the log and a word to the listener every few steps."""

    this: Run
    since: Progress
    started: float = 0.0
    told: float = 0.0
    """When the listener last heard of it, in seconds of the run."""
    time_left: TimeLeft = field(default_factory=TimeLeft)

    def __post_init__(self) -> None:
        self.started = self.this.clock() - self.since.seconds
        self.told = self.since.seconds

    def tell(self, progress: Progress, outcome: _Outcome, rate: float) -> Progress:
        this = self.this
        tokens = progress.tokens + this.feed.num_tokens(progress.step)
        seconds = this.clock() - self.started
        step = progress.step + 1
        memory = this.objective.remember(progress.memory, outcome.terms, step / this.total_steps)
        progress = Progress(step, tokens, seconds, outcome.terms[LOSS], memory)
        self.time_left.done(step, seconds)
        due = progress.step % this.training.logging_steps == 0 or progress.step == this.total_steps
        if this.metrics is not None and (due or seconds - self.told >= _SILENT_S):
            speed = (progress.tokens - self.since.tokens) / max(1e-9, progress.seconds - self.since.seconds)
            self._say(progress, speed)
            if due:
                self._write(this.metrics, progress, outcome, rate, speed)
        return progress

    def _write(self, metrics: StepLog, progress: Progress, outcome: _Outcome, rate: float, speed: float) -> None:
        self.since = progress
        metrics.write(
            {
                "step": progress.step,
                "loss": progress.loss,
                "terms": {name: value for name, value in outcome.terms.items() if name != LOSS},
                "learning_rate": rate,
                "grad_norm": outcome.grad_norm,
                "tokens": progress.tokens,
                "tokens_per_second": speed,
                "time": self.this.clock(),
            }
        )

    def _say(self, progress: Progress, speed: float) -> None:
        self.told = progress.seconds
        left = self.time_left.seconds(self.this.total_steps - progress.step)
        figures = {"loss": progress.loss, "tokens": progress.tokens, "tokens_per_second": speed}
        figures["eta_s"] = math.nan if left is None else left
        self.this.listener.progress(self.this.role, progress.step, self.this.total_steps, **figures)


def _check_whole(this: Run, micro_batch: MicroBatch) -> None:
    """A relation between all samples of a step cannot be told from parts of it."""
    if Needs.WHOLE_STEP in this.objective.needs and not (micro_batch.last and micro_batch.place == 0):
        message = (
            f"{this.role}: step {micro_batch.step + 1} does not fit one micro-batch a worker, as its objective needs"
        )
        raise UserError("STEP_DIVIDED", f"{message}; raise training.micro_batch_tokens")


def _save_if_due(this: Run, progress: Progress, outcome: _Outcome) -> None:
    """Every `every_steps`, and before stopping; the last step is kept as the finished model instead."""
    is_last = progress.step == this.total_steps
    if (progress.step % this.checkpoint.every_steps == 0 or outcome.stop) and not is_last:
        path = this.checkpoints.save(progress, this.engine.state(), this.engine.model_state())
        if this.peers.is_first:
            this.listener.event("CHECKPOINT_SAVED", f"{this.role}: step {progress.step}, {path.name}")
    if outcome.stop and not is_last:
        raise Stopped("STOPPED", f"{this.role} was asked to stop and did so after step {progress.step}")


def _not_finite(this: Run, step: int, losses: list[float]) -> UserError:
    """Names rows, from 1 as data errors do: of the micro-batches whose loss is lost, else of the whole step."""
    places, world = this.feed.num_places(step), this.peers.world
    mine = [0.0] * (places * world)
    for place, loss in enumerate(losses):
        mine[this.peers.rank * places + place] = float(not math.isfinite(loss))
    lost = [index for index, flag in enumerate(this.peers.sum(mine)) if flag]
    where = "loss" if lost else "gradient"
    named = [divmod(index, places) for index in lost or range(places * world)]
    rows = sorted({one + 1 for rank, place in named for one in this.feed.sample_ids(step, rank, place)})
    shown = ", ".join(map(str, rows[:32])) + (f" and {len(rows) - 32} more" if len(rows) > 32 else "")
    message = (
        f"{this.role}: the {where} of step {step + 1} is not finite; stopped before the update. "
        f"Rows of the training data: {shown}. Lower training.learning_rate, or look at these rows"
    )
    return UserError("NON_FINITE_LOSS", message)
