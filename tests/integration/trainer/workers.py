"""Worker processes for tests: a gloo group of their own by a file, results as files, every process ended by its id."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

from trainer.job import JobContext
from trainer.listener import Silent, Stopped
from trainer.peers import Peers

DEADLINE_S = 500


class KillAt(Silent):
    """The process that hears of step `step` of a learner is gone, as by the kernel's hand."""

    def __init__(self, step: int) -> None:
        self.step = step

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class StopAt(Silent):
    """Asks to stop when it is asked for the `questions`-th time."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


def run_workers(work: Callable[..., None], world: int, directory: Path, *args: Any) -> list[int]:
    """`work(peers, *args)` in `world` processes; their exit codes. Once one is lost the others are killed."""
    store = directory / f"store-{os.urandom(4).hex()}"
    context = get_context("spawn")
    processes = [context.Process(target=_enter, args=(rank, world, store, work, args)) for rank in range(world)]
    for process in processes:
        process.start()
    try:
        for _ in range(DEADLINE_S):
            codes = [process.exitcode for process in processes]
            if all(code is not None for code in codes) or any(codes):
                break
            next(process for process in processes if process.exitcode is None).join(1)
    finally:
        for process in processes:
            if process.exitcode is None:
                process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _enter(rank: int, world: int, store: Path, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    work(Peers(rank, world), *args)
    if world > 1:
        dist.barrier()  # whoever leaves first would take the others' connections away
    if dist.is_initialized():
        dist.destroy_process_group()  # its threads must not outlive the interpreter, which would abort


T = TypeVar("T")


def one_by_one(tasks: Iterable[T]) -> Iterator[T]:
    """Each of them; what the first has loaded is spared the collections of garbage that every other one asks for.

    They go through all that modules hold, which takes longer than such a task.
    """
    for task in tasks:
        yield task
        gc.freeze()


def in_turn(peers: Peers, works: list[tuple[Any, ...]]) -> None:
    """Each `(work, *args)` by the same processes, which take longer to begin than most works take."""
    for work, *args in one_by_one(works):
        work(peers, *args)


def fit_all(peers: Peers, jobs: list[JobContext], engine: str = "deepspeed") -> None:
    """Every job's student to its end."""
    from trainer.fit import fit

    for ctx in one_by_one(jobs):
        fit(ctx, "student", peers, None, Silent(), engine=engine)


def fit_with_a_stop(peers: Peers, jobs: list[JobContext]) -> None:
    """Every job's student, stopped after its third step and taken up again."""
    from trainer.fit import fit

    for ctx in one_by_one(jobs):
        try:
            fit(ctx, "student", peers, None, StopAt(3))
        except Stopped:
            fit(ctx, "student", peers, None, Silent())
        else:
            raise AssertionError("it was to stop")


def fit_until_killed(peers: Peers, ctx: JobContext, step: int) -> None:
    """The first worker is killed when it tells of step `step`."""
    from trainer.fit import fit

    fit(ctx, "student", peers, None, KillAt(step))


class PoisonedTeacher:
    """Hidden states of zeros under a head of zeros, but not numbers for one sample."""

    def __init__(self, num_tokens: int, sample_id: int) -> None:
        self.num_tokens = num_tokens
        self.sample_id = sample_id

    def head(self) -> Any:
        from trainer.head import Head

        return Head(torch.zeros(self.num_tokens, 4), None)

    def facts(self, _batch: Any) -> Any:
        from trainer.wanted import Shape, TeacherFacts

        return TeacherFacts(Shape(4, 1), self.num_tokens, 4, 0.0, 0.0)

    def request(self, batch: Any, _wanted: Any) -> Callable[[], Any]:
        from trainer.teacher import Targets

        value = float("nan") if self.sample_id in batch.sample_ids else 0.0
        return lambda: Targets(torch.full((batch.num_targets, 4), value))


def fit_on_poison(peers: Peers, jobs: list[JobContext], num_tokens: int, sample_id: int) -> None:
    """Every job's student; what each worker is told goes to `told-<rank>` beside the job."""
    from trainer.errors import UserError
    from trainer.faculty import Faculty
    from trainer.fit import fit

    for ctx in one_by_one(jobs):
        try:
            fit(ctx, "student", peers, Faculty.alone(PoisonedTeacher(num_tokens, sample_id)), Silent())
        except UserError as error:
            (ctx.job_dir / f"told-{peers.rank}").write_text(f"{error.reason} {error}")


def agree(peers: Peers, directory: Path) -> None:
    """Every way in which peers agree, as one JSON document for each rank."""
    found = {
        "sum": peers.sum([1.0, peers.rank]),
        "max": peers.max(5 + peers.rank),
        "any": [peers.any(peers.rank == 1), peers.any(False)],
        "broadcast": [peers.broadcast({"ü": [peers.rank, None]}), peers.broadcast(None if peers.is_first else 1)],
        "first": peers.is_first,
        "same": Peers.of_process_group() == peers,
    }
    peers.barrier()
    (directory / f"agreed-{peers.world}-{peers.rank}.json").write_text(json.dumps(found))


SLOPES = (1.0, *[2.0**-9] * 64)
"""Gradients of micro-batches: in bfloat16 each of the small ones is lost beside the first."""


def add_gradients_up(peers: Peers, settings: dict[str, dict[str, Any]], directory: Path) -> None:
    """One step of `SLOPES` in every stage; each worker's share of the first moments goes to a file.

    And the norm, and how many gradients lie beside the weights when all have been added up.
    """
    from safetensors.torch import save_file

    from trainer.engine import ENGINES
    from trainer.training_spec import TrainingSpec

    for name, changes in settings.items():
        training = TrainingSpec(max_steps=1, **changes)
        torch.manual_seed(0)
        engine = ENGINES["deepspeed"](Incline(peers, training), training, peers)
        for at, slope in enumerate(SLOPES):
            sums = engine.forward(slope, [], None)
            engine.backward(sums["loss"], last=at == len(SLOPES) - 1)
        beside = sum(weight.numel() for weight in engine._learner.parameters() if weight.grad is not None)
        found = {"norm": torch.tensor(engine.grad_norm(), dtype=torch.float64), "beside": torch.tensor(beside)}
        engine.step(0.1)
        found |= {key: value for key, value in engine.state().items() if key.endswith("exp_avg")}
        save_file(found, directory / f"{name}-{peers.rank}.safetensors")
        engine.close()


class Incline(torch.nn.Module):
    """Stands where a learner does: its gradient is what it is given, everywhere.

    A part of it only the first worker has a gradient of, in the layouts in which DeepSpeed lets that be.
    """

    def __init__(self, peers: Peers, training: Any) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 4)
        self.one_sided = torch.nn.Linear(4, 2)
        askers = 1 if training.zero_stage < 2 and training.offload_optimizer == "none" else peers.world
        self.asks, self.share = peers.rank < askers, peers.world / askers

    def forward(self, slope: float, _answers: Any, _step: Any) -> dict[str, torch.Tensor]:
        ones = torch.ones(1, 6, dtype=self.inner.weight.dtype)
        loss = (self.inner(ones) * slope).sum().float()
        if self.asks:
            loss = loss + (self.one_sided(ones[:, :4]) * slope * self.share).sum().float()
        return {"loss": loss}


def keep_frequencies(peers: Peers, jobs: list[JobContext]) -> None:
    """What positions are turned by, before and under the engine, goes to `frequencies` beside each job."""
    from trainer.engine import ENGINES
    from trainer.fit import first_model
    from trainer.learner import Learner
    from trainer.objective import CrossEntropy
    from trainer.prepared import Prepared

    for ctx in jobs:
        model = first_model(ctx, Prepared.open(ctx))
        before = model.model.rotary_emb.inv_freq.clone()
        engine = ENGINES["deepspeed"](Learner(model, CrossEntropy(8)), ctx.spec.training, peers)
        assert model.lm_head.weight.dtype == torch.bfloat16
        torch.save([before, model.model.rotary_emb.inv_freq], ctx.job_dir / "frequencies")
        engine.close()
