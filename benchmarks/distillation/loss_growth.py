"""Peak memory and time of the loss alone, forward and backward, at one size: a process of its own for each.

The loss sees hidden states and heads, never a model: so the sizes of large models fit a small machine.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.measure import MIB, memory_mib
from trainer.answers import HiddenAnswer, LogitsAnswer, Mix, TeacherSide, topk_answer
from trainer.device import keep_freed_memory
from trainer.head import Head
from trainer.losses import distillation_loss

_STUDENT_WIDTH, _TEACHER_WIDTH = 256, 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--payload", choices=["hidden_states", "topk_logits", "full_logits"], default="hidden_states")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--divergence", default="forward_kl")
    parser.add_argument("--repetitions", type=int, default=3)
    chosen = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    hidden_ND = torch.randn(chosen.tokens, _STUDENT_WIDTH).bfloat16().requires_grad_()
    weight_VD = (torch.randn(chosen.vocabulary, _STUDENT_WIDTH) * 0.05).bfloat16().requires_grad_()
    labels_N = torch.randint(0, chosen.vocabulary, (chosen.tokens,))
    side = _teacher(chosen)
    weights_mib = chosen.vocabulary * (_STUDENT_WIDTH + _TEACHER_WIDTH * (side.answer.__class__ is HiddenAnswer)) * 2
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, seconds = memory_mib("VmRSS"), []
    for _ in range(chosen.repetitions):
        start = time.monotonic()
        mix = Mix(1.0, 1.0, chosen.divergence)
        sums = distillation_loss(hidden_ND, Head(weight_VD), labels_N, [side], mix, num_tokens=chosen.vocabulary)
        sums.total.backward()  # type: ignore[no-untyped-call]
        seconds.append(time.monotonic() - start)
        hidden_ND.grad = weight_VD.grad = None
    print(
        json.dumps(
            {
                "peak_mib": memory_mib() - before,
                "weights_mib": weights_mib / MIB,
                "logits_mib": chosen.tokens * chosen.vocabulary * 4 / MIB,
                "seconds": min(seconds),
            }
        )
    )


def _teacher(chosen: argparse.Namespace) -> TeacherSide:
    hidden_ND = torch.randn(chosen.tokens, _TEACHER_WIDTH).bfloat16()
    head = Head((torch.randn(chosen.vocabulary, _TEACHER_WIDTH) * 0.05).bfloat16())
    if chosen.payload == "hidden_states":
        return TeacherSide(HiddenAnswer(hidden_ND, head))
    logits_NV = head.logits_RV(hidden_ND)
    if chosen.payload == "full_logits":
        return TeacherSide(LogitsAnswer(logits_NV))
    return TeacherSide(topk_answer(logits_NV, chosen.top_k, 1.0))


if __name__ == "__main__":
    main()
