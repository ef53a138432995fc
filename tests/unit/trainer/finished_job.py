"""A finished job's directory, written by hand: what the report reads, with figures that are known beforehand."""

import json
import math
import struct
from pathlib import Path

from trainer.job import JobContext
from trainer.spec import DistillSpec, FineTuneSpec

TRAINING = {"max_steps": 100, "seed": 7}
FRESH = {"config": {"model_type": "llama", "hidden_size": 128}}
COUNTS = {
    "train": {"rows": 4010, "samples": 4000, "cut": 25, "dropped": 10},
    "eval": {"rows": 400, "samples": 400, "cut": 0, "dropped": 0},
}
FINGERPRINTS = {"train": "9f2c" * 16, "eval": "0b1a" * 16}
EVALUATE = {"bootstrap_samples": 500, "baseline": True}


def distill_job(root, **evaluate):
    spec = DistillSpec.model_validate(
        {
            "teachers": [{"model": "support-teacher@champion", "shards": 2}],
            "student": FRESH,
            "data": {"train": "data/questions.jsonl", "eval": "data/test.jsonl", "format": "prompt_completion"},
            "training": TRAINING,
            "evaluate": EVALUATE | evaluate,
        }
    )
    job_dir = Path(root) / "support-student-k7m2p9xq"
    teacher_dir = Path(root) / "models" / "support-teacher" / "1"
    write_parameters(teacher_dir, [(2048, 4096), (1_700_000,)])
    return JobContext(job_dir, "Distill", spec, {"support-teacher@champion": str(teacher_dir)})


def finetune_job(root, **evaluate):
    spec = FineTuneSpec.model_validate(
        {
            "student": FRESH,
            "data": {"train": "data/labelled.csv", "eval": "data/test.csv", "format": "prompt_completion"},
            "training": TRAINING,
            "evaluate": {"bootstrap_samples": 500} | evaluate,
        }
    )
    return JobContext(Path(root) / "support-teacher-abcdefgh", "FineTune", spec, {})


def write_parameters(model_dir, shapes):
    """A safetensors file with these shapes; its numbers are zeros nobody reads, left as a hole."""
    model_dir.mkdir(parents=True, exist_ok=True)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for position, shape in enumerate(shapes):
        start, end = end, end + 4 * math.prod(shape)
        header[f"weight.{position}"] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (model_dir / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_answers(ctx, role, right, *, completions=None, nll=None, prompts=None):
    """One line per sample; `right[i]` says whether sample i was answered exactly."""
    path = ctx.evaluation_path(role)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for sample_id, is_right in enumerate(right):
        reference = f"answer {sample_id}"
        line = {
            "sample_id": sample_id,
            "prompt": prompts[sample_id] if prompts else f"question {sample_id}",
            "reference": reference,
            "completion": completions[sample_id] if completions else reference if is_right else "something else",
            "exact_match": is_right,
        }
        if nll is not None:
            line |= {"nll": nll[sample_id], "tokens": 10}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")


CROSS_ENTROPY = {"cross_entropy": 1.0}
DISTILLATION = {"distillation": 1.0, "forward_kl": 0.8, "cross_entropy": 1.3}


def write_metrics(ctx, role, losses, *, every=10, terms=CROSS_ENTROPY):
    """A curve of `losses`, one each `every` steps of 1,000 tokens, at 2,000 tokens per second.

    `terms`: name -> its share of the loss.
    """
    path = ctx.metrics_path(role)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "step": every * (position + 1),
            "loss": loss,
            "terms": {term: share * loss for term, share in terms.items()},
            "learning_rate": 1e-3,
            "grad_norm": 1.0,
            "tokens": 1000 * every * (position + 1),
            "tokens_per_second": 2000.0,
            "time": 1.7e9 + position,
        }
        for position, loss in enumerate(losses)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_origin(ctx):
    """What the control plane and the preparation left beside."""
    attempt = ctx.job_dir / "attempts" / "1" / "attempt.json"
    attempt.parent.mkdir(parents=True)
    models = {"support-teacher@champion": {"reference": "support-teacher@3", "path": "/somewhere"}}
    attempt.write_text(json.dumps({"attempt": 1, "lease_token": "lease-not-for-the-page", "models": models}))
    ctx.prepared_dir.mkdir(parents=True)
    (ctx.prepared_dir / "done.json").write_text(json.dumps({"counts": COUNTS, "data_fingerprint": FINGERPRINTS}))


def whole_transfer(root, *, num_samples=400):
    """Teacher right on 98 %, student on 95 %, baseline on 60 %; all with curves, sizes and lineage."""
    ctx = distill_job(root)
    every = range(num_samples)
    write_answers(ctx, "teacher", [i % 50 != 0 for i in every], nll=[0.2 + i % 7 / 100 for i in every])
    write_answers(ctx, "student", [i % 20 != 0 for i in every], nll=[0.5 + i % 7 / 100 for i in every])
    write_answers(ctx, "baseline", [i % 5 > 1 for i in every], nll=[9 + i % 7 for i in every])
    for role in ("student", "baseline"):
        write_parameters(ctx.model_dir(role), [(2048, 512), (700_000,)])
    falling = [7 * math.exp(-step / 30) + 0.05 * (2 + math.sin(step)) for step in range(100)]
    write_metrics(ctx, "student", falling, terms=DISTILLATION)
    write_metrics(ctx, "baseline", [loss + 0.4 for loss in falling])
    write_origin(ctx)
    return ctx
