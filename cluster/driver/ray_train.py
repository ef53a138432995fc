"""Ray Train, set up for our student groups: which of its processes we do without, and what its dashboard shows.

Knows nothing of what the workers do. It reaches past Ray's public names, which is why `ray` is pinned to one minor
version.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from trainer.spec import StudentResources

_SETTINGS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that gives early notice, of which we make no use
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_workers(
    work: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    name: str,
    storage: Path,
    resources: StudentResources,
    max_failures: int,
) -> None:
    """Runs `work(config)` on each worker; lost workers are started again, all of them, so many times.

    TrainingFailedError when they were lost too often.
    """
    os.environ.update(_SETTINGS)
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        per_worker["GPU"] = resources.gpus_per_worker
    scaling = ray.train.ScalingConfig(
        num_workers=resources.workers, use_gpu=resources.gpus_per_worker > 0, resources_per_worker=per_worker
    )
    failures = ray.train.FailureConfig(max_failures=max_failures)
    run = ray.train.RunConfig(name=name, storage_path=str(storage), failure_config=failures)
    _Trainer(work, train_loop_config=config, scaling_config=scaling, run_config=run).fit()


_UNUSED = (
    DatasetsCallback,  # an actor that hands out Ray Data's datasets: ours lie on the shared storage
    PlacementGroupCleanerCallback,  # an actor for placement groups that outlive their controller: ours end with the job
)


class _Trainer(DataParallelTrainer):  # type: ignore[misc]
    """Not `TorchTrainer`: its backend loads torch into driver and controller, where nobody needs it."""

    def _initialize_and_run_controller(self, **parts: Any) -> ray.train.Result:
        return super()._initialize_and_run_controller(**parts | {"scaling_policy": _FixedGroup(self.scaling_config)})

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, _UNUSED)]


class _FixedGroup(FixedScalingPolicy):  # type: ignore[misc]
    """Asks for its workers by their placement group alone, which every autoscaler sees.

    The coordinator that is asked otherwise is one process more, and the run waits seconds for it.
    """

    def after_controller_start(self, train_run_context: object) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...
