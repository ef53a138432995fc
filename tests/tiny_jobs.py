"""Jobs that learn in a second: a model of a few thousand parameters on a few made-up conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.job import JobContext
from trainer.spec import parse_spec

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TINY_GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 128}
WORDS = ("card", "lost", "top", "up", "refund", "pay", "fee", "limit", "account", "transfer")


def write_chats(path: Path, count: int, *, seed: int = 0, answered: bool = True) -> Path:
    """One JSON line for each conversation; the answer depends on the first word asked."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(count):
            asked = rng.choices(WORDS, k=rng.randint(2, 6))
            messages = [{"role": "user", "content": " ".join(asked)}]
            if answered:
                messages.append({"role": "assistant", "content": f"about {asked[0]} " + "yes " * rng.randint(0, 3)})
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def fine_tune_job(directory: Path, **changes: Any) -> JobContext:
    """A FineTune job in `directory`; `changes` go over its sections, but `student` replaces the whole one."""
    directory.mkdir(parents=True, exist_ok=True)
    train = write_chats(directory / "train.jsonl", 48)
    spec: dict[str, Any] = {
        "student": {"config": TINY_LLAMA, "tokenizer": {"vocab_size": 320}},
        "data": {"train": str(train), "max_length": 64},
        "training": {
            "max_steps": 6,
            "batch_tokens": 256,
            "micro_batch_tokens": 256,
            "learning_rate": 0.01,
            "precision": "fp32",
            "zero_stage": 2,
            "logging_steps": 1,
        },
        "checkpoint": {"every_steps": 2},
        "evaluate": {"max_new_tokens": 8},
    }
    return _job(directory, "FineTune", spec, changes)


def distill_job(directory: Path, teacher: Path, **changes: Any) -> JobContext:
    """A Distill job whose student is as small and differs in shape."""
    base = fine_tune_job(directory).spec.model_dump(mode="json")
    spec: dict[str, Any] = {
        **{name: base[name] for name in ("data", "training", "checkpoint", "evaluate")},
        "teachers": [{"model": str(teacher), "dtype": "float32"}],
        "student": {"config": {**TINY_LLAMA, "hidden_size": 16, "intermediate_size": 24}},
        "objective": {"temperature": 2.0, "kd_ratio": 0.7},
    }
    return _job(directory, "Distill", spec, changes)


def routed(ctx: JobContext, teachers: Sequence[Path]) -> JobContext:
    """The same job, its training rows dealt out to these teachers in turn."""
    spec = ctx.spec.model_dump(mode="json")
    path = Path(spec["data"]["train"])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    named = [{**row, "who": f"teacher-{at % len(teachers)}"} for at, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in named))
    spec["data"]["columns"]["teacher_key"] = "who"
    spec["teachers"] = [{**spec["teachers"][0], "model": str(teacher)} for teacher in teachers]
    return JobContext(ctx.job_dir, "Distill", parse_spec("Distill", spec))


def _job(directory: Path, kind: str, spec: dict[str, Any], changes: dict[str, Any]) -> JobContext:
    for name, change in changes.items():
        spec[name] = change if name in ("student", "teachers") else {**spec.get(name, {}), **change}
    return JobContext(directory, kind, parse_spec(kind, spec))
