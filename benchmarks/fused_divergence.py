"""The divergence straight from hidden states on a GPU, forward and backward, against torch and Liger in the same run.

Rows 8192, hidden 4096, vocabulary 128 256, bfloat16: the shape that others publish. Without a GPU it says so and ends;
Liger takes part where `liger_kernel` is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import MIB, machine, save, versions
from trainer.answers import HiddenAnswer, Mix, TeacherSide
from trainer.divergences import Settings
from trainer.head import Head
from trainer.losses import distillation_loss

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Student's hidden states and head (with gradients), the teacher's, labels."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--repetitions", type=int, default=10)
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("fused_divergence: there is no GPU here; nothing was measured", file=sys.stderr)
        return 0
    inputs = _inputs(chosen.rows, chosen.hidden, chosen.vocabulary)
    sides = {"ours": _ours, "torch": _plain} | ({"liger": _liger} if _has_liger() else {})
    found = {name: _measured(side, inputs, chosen.repetitions) for name, side in sides.items()}
    document = {
        "benchmark": "fused_divergence",
        "shape": {"rows": chosen.rows, "hidden": chosen.hidden, "vocabulary": chosen.vocabulary},
        "sides": found,
        "device": torch.cuda.get_device_name(),
        "machine": machine(),
        "versions": versions("torch"),
        "n": chosen.repetitions,
    }
    for name, side in found.items():
        print(f"{name:8s} {side['ms']:8.1f} ms {side['peak_mib']:10.0f} MiB above the inputs", file=sys.stderr)
    if chosen.save:
        print(save("fused_divergence", document), file=sys.stderr)
    if chosen.json:
        print(json.dumps(document))
    return 0


def _inputs(rows: int, hidden: int, vocabulary: int) -> Inputs:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        made = torch.randn(*shape, generator=generator, device="cuda", dtype=torch.bfloat16)
        return made * scale

    student, teacher = normal(rows, hidden), normal(rows, hidden)
    heads = normal(vocabulary, hidden, scale=0.02), normal(vocabulary, hidden, scale=0.02)
    labels = torch.randint(0, vocabulary, (rows,), generator=generator, device="cuda")
    return student.requires_grad_(), heads[0].requires_grad_(), teacher, heads[1], labels


def _ours(inputs: Inputs) -> Tensor:
    student, head, teacher, teacher_head, labels = inputs
    side = TeacherSide(HiddenAnswer(teacher, Head(teacher_head)))
    mix = Mix(1.0, 1.0, "jsd", Settings(beta=0.5))
    return distillation_loss(student, Head(head), labels, [side], mix, num_tokens=len(head)).total


def _plain(inputs: Inputs) -> Tensor:
    """The same divergence on whole logits."""
    student, head, teacher, teacher_head, _ = inputs
    log_q, log_p = ((a @ b.T).float().log_softmax(-1) for a, b in ((student, head), (teacher, teacher_head)))
    log_m = torch.logsumexp(torch.stack([log_p, log_q]), dim=0) - torch.log(torch.tensor(2.0, device=log_p.device))
    towards = [F.kl_div(log_m, one, log_target=True, reduction="sum") for one in (log_p, log_q)]
    return 2.0 * (towards[0] + towards[1])


def _has_liger() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def _liger(inputs: Inputs) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearJSD

    student, head, teacher, teacher_head, _ = inputs
    value: Tensor = LigerFusedLinearJSD(jsd_beta=0.5)(student, head, teacher, teacher_head)
    return value


def _measured(side: Callable[[Inputs], Tensor], inputs: Inputs, repetitions: int) -> dict[str, float]:
    """Median milliseconds after two rounds of warm-up, and the peak above what lay there before."""
    milliseconds: list[float] = []
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repetitions + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        side(inputs).backward()  # type: ignore[no-untyped-call]
        end.record()
        torch.cuda.synchronize()
        milliseconds.append(start.elapsed_time(end))
        inputs[0].grad = inputs[1].grad = None
    peak = (torch.cuda.max_memory_allocated() - before) / MIB
    return {"ms": statistics.median(milliseconds[2:]), "peak_mib": peak}


if __name__ == "__main__":
    sys.exit(main())
