"""TRL's side: `GKDTrainer` on the same models and batches, set up as its users would on a CPU.

It sees nothing of ours but the workload on disk. lmbda 0 (no sampling), beta 0 (forward KL), bf16 autocast.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.distillation import workload as settings
from benchmarks.distillation.step import LENGTH, ROWS
from benchmarks.distillation.workload import Workload
from benchmarks.measure import memory_mib


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", type=Path)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="TRL's own default; slower, less memory")
    chosen = parser.parse_args()
    print(json.dumps(measure(Workload(chosen.workload), checkpointing=chosen.gradient_checkpointing)))


def measure(workload: Workload, *, checkpointing: bool) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDTrainer

    ends: list[float] = []
    losses: list[float] = []
    peaks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.time())
            peaks.append(memory_mib())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    rows = [row for batch in json.loads(workload.batches.read_text()) for row in batch]
    mask = [0] + [1] * (LENGTH - 1)  # the first token has no prediction before it, on our side neither
    data = Dataset.from_list([{"prompt": "", "input_ids": row, "completion_mask": mask} for row in rows])
    imported_mib = memory_mib("VmRSS")
    trainer = GKDTrainer(
        model=str(workload.student),
        teacher_model=str(workload.teacher),
        args=_config(workload, checkpointing),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(workload.student),
        callbacks=[Clock()],
    )
    trainer.train()
    steps = workload.steps
    return {
        "seconds_per_step": steps.seconds_per_step(ends),
        "losses": losses[: steps.warmup],
        "peak_mib": peaks[steps.warmup + steps.timed - 1],
        "imported_mib": imported_mib,
    }


def _config(workload: Workload, checkpointing: bool) -> Any:
    from trl.experimental.gkd import GKDConfig

    return GKDConfig(
        output_dir=str(workload.root / "trl"),
        lmbda=0.0,
        beta=0.0,
        temperature=1.0,
        bf16=True,
        use_cpu=True,
        max_length=LENGTH,
        per_device_train_batch_size=ROWS,
        max_steps=workload.steps.total,
        train_sampling_strategy="sequential",
        learning_rate=settings.LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=settings.WEIGHT_DECAY,
        adam_beta1=settings.ADAM_BETAS[0],
        adam_beta2=settings.ADAM_BETAS[1],
        max_grad_norm=settings.MAX_GRAD_NORM,
        seed=settings.SEED,
        gradient_checkpointing=checkpointing,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
