"""Our side in one process: `trainer.fit` with a `LocalTeacher`, or without one as a plain supervised step.

The times are those that the product writes to `metrics.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.distillation.workload import Workload
from benchmarks.measure import memory_mib


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=Path)
    parser.add_argument("--engine", choices=["deepspeed", "torch"], required=True)
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    found = measure(Workload(chosen.workload), chosen.engine, taught=not chosen.supervised, profiled=chosen.profile)
    print(json.dumps(found))


def measure(workload: Workload, engine: str, *, taught: bool, profiled: bool = False) -> dict[str, Any]:
    from trainer.faculty import Faculty
    from trainer.fit import fit
    from trainer.job import JobContext
    from trainer.peers import Peers
    from trainer.prepare import prepare
    from trainer.spec import parse_spec
    from trainer.teacher import LocalTeacher, TeacherModel

    kind = "Distill" if taught else "FineTune"
    job_dir = workload.root / f"job-{kind.lower()}-{engine}"
    shutil.rmtree(job_dir, ignore_errors=True)
    ctx = JobContext(job_dir, kind, parse_spec(kind, workload.spec(taught=taught)))
    preparing = multiprocessing.get_context("spawn").Process(target=prepare, args=(ctx,))
    preparing.start()  # the peer, too, is given token ids and not text
    preparing.join()
    imported_mib = memory_mib("VmRSS")
    teacher = LocalTeacher(TeacherModel(str(workload.teacher), dtype="bfloat16")) if taught else None
    faculty = Faculty.alone(teacher) if teacher else None
    heard = Heard(workload, profiled=profiled)
    fit(ctx, "student", Peers.alone(), faculty, heard, engine=engine)
    found = logged(workload, ctx.metrics_path("student"))
    return {**found, "peak_mib": heard.peak_mib, "imported_mib": imported_mib}


def logged(workload: Workload, metrics: Path) -> dict[str, Any]:
    """Seconds of a step and the losses, as the product logged them."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {
        "seconds_per_step": workload.steps.seconds_per_step([line["time"] for line in lines]),
        "losses": [line["loss"] for line in lines[: workload.steps.warmup]],
    }


class Heard:
    """A `Listener`: takes the peak memory after the last timed step, before the model is written."""

    def __init__(self, workload: Workload, *, profiled: bool) -> None:
        self._steps = workload.steps
        self._profiler = _profiler() if profiled else None
        self.peak_mib = 0.0

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:  # noqa: ARG002
        if step == self._steps.warmup and self._profiler is not None:
            self._profiler.start()
        if step == self._steps.warmup + self._steps.timed:
            self.peak_mib = memory_mib()
            if self._profiler is not None:
                self._profiler.stop()
                print(_table(self._profiler, self._steps.timed), file=sys.stderr)

    def event(self, reason: str, message: str) -> None:
        print(reason, message, file=sys.stderr)

    def should_stop(self) -> bool:
        return False


def _profiler() -> Any:
    from torch.profiler import ProfilerActivity, profile

    return profile(activities=[ProfilerActivity.CPU], record_shapes=True)


def _table(profiler: Any, steps: int) -> str:
    """Operations by their own time, per shape, over all profiled steps."""
    averages = profiler.key_averages(group_by_input_shape=True)
    words = averages.table(sort_by="self_cpu_time_total", row_limit=45, max_name_column_width=48)
    return f"{steps} steps\n{words}"


if __name__ == "__main__":
    main()
