"""What all sides work on, written once to a directory: teacher, student, text of exactly 220 tokens a row, job specs.

One word is one token, so the product's own preparation gives rows of the length that is wanted. `batches.json` holds
the same token ids in the order in which the product takes them, for sides that read no jobs.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.distillation.step import LENGTH, ROWS, STUDENT, TEACHER, Shape

LEARNING_RATE, WEIGHT_DECAY, ADAM_BETAS, MAX_GRAD_NORM, SEED = 3.0e-4, 0.01, (0.9, 0.999), 1.0, 7
PAD, END = "<|pad|>", "<|end|>"
_SPREAD_LOGITS = 0.05  # of the teacher's weights: far enough from uniform for a divergence worth minimising


@dataclass(frozen=True)
class Steps:
    """Before the clock, on it, and after it: the last steps of a run find their teacher's answers already there."""

    warmup: int
    timed: int
    tail: int = 3

    @property
    def total(self) -> int:
        return self.warmup + self.timed + self.tail

    def seconds_per_step(self, ends: list[float]) -> float:
        """`ends[i]` is when step i was over."""
        return (ends[self.warmup + self.timed - 1] - ends[self.warmup - 1]) / self.timed


@dataclass(frozen=True)
class Workload:
    """The directory, and where things lie in it."""

    root: Path

    @property
    def teacher(self) -> Path:
        return self.root / "teacher"

    @property
    def student(self) -> Path:
        return self.root / "student"

    @property
    def train(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def batches(self) -> Path:
        return self.root / "batches.json"

    @property
    def steps(self) -> Steps:
        return Steps(**json.loads((self.root / "steps.json").read_text()))

    def spec(self, *, taught: bool, student_cpus: float = 1.0, teacher_cpus: float = 1.0) -> dict[str, Any]:
        """Of a job of kind Distill, or FineTune where nobody teaches; everything not named is the default."""
        spec: dict[str, Any] = {
            "student": {"model": str(self.student)},
            "data": {"train": str(self.train), "format": "text", "max_length": LENGTH},
            "training": _training(self.steps.total),
            "resources": {"student": {"cpus_per_worker": student_cpus}, "teacher": {"cpus_per_worker": teacher_cpus}},
            "checkpoint": {"every_steps": 1_000_000},
        }
        if taught:
            spec["teachers"] = [{"model": str(self.teacher), "dtype": "bfloat16"}]
            spec["objective"] = {"kd_ratio": 1.0, "temperature": 1.0}
        return spec


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--warmup", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    chosen = parser.parse_args()
    write(chosen.root, Steps(chosen.warmup, chosen.steps))
    print(json.dumps({"root": str(chosen.root)}))


def write(root: Path, steps: Steps) -> Workload:
    import torch

    this = Workload(root)
    root.mkdir(parents=True, exist_ok=True)
    (root / "steps.json").write_text(json.dumps(asdict(steps)))
    _write_model(this.teacher, TEACHER, torch.bfloat16, initializer_range=_SPREAD_LOGITS)
    _write_model(this.student, STUDENT, torch.float32, initializer_range=0.02)
    rng = random.Random(SEED)
    words = _words()[2:]
    with this.train.open("w") as file:
        for _ in range(ROWS * steps.total):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=LENGTH - 1))}) + "\n")
    _write_batches(this)
    return this


def _training(total: int) -> dict[str, Any]:
    from trainer.batch import padded_length

    tokens = ROWS * padded_length(LENGTH)
    return {
        "max_steps": total,
        "batch_tokens": tokens,
        "micro_batch_tokens": tokens,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": WEIGHT_DECAY,
        "adam_beta1": ADAM_BETAS[0],
        "adam_beta2": ADAM_BETAS[1],
        "max_grad_norm": MAX_GRAD_NORM,
        "precision": "bf16",
        "logging_steps": 1,
        "seed": SEED,
    }


def _words() -> list[str]:
    return [PAD, END, *(f"w{index}" for index in range(2, STUDENT.vocab_size))]


def _write_model(directory: Path, shape: Shape, dtype: Any, *, initializer_range: float) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = LlamaConfig(
        **asdict(shape),
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(SEED)
    LlamaForCausalLM(config).to(dtype).save_pretrained(directory)
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_words())}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END).save_pretrained(directory)


def _write_batches(this: Workload) -> None:
    """Token ids of each step's rows, in the product's order."""
    from trainer.order import SampleOrder

    ids = [[*(int(word[1:]) for word in json.loads(line)["text"].split()), 1] for line in this.train.open()]
    training = _training(this.steps.total)
    order = SampleOrder([len(one) for one in ids], seed=SEED, batch_tokens=training["batch_tokens"], max_length=LENGTH)
    batches = [[ids[index] for index in order.global_batch(step).sample_ids] for step in range(this.steps.total)]
    this.batches.write_text(json.dumps(batches))


if __name__ == "__main__":
    main()
