"""Which form the teachers' answers travel in: checked against what their heads do on real tokens, and said aloud.

`auto` takes the smallest form that is exact. What the forms mean to the loss is `answers.py`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.errors import UserError
from trainer.spec import DistillSpec
from trainer.wanted import PayloadForm, TeacherFacts, Wanted

_TOPK_BYTES = 8
"""An id and a float32 for each entry."""


def choose_payload(
    spec: DistillSpec, facts: Sequence[TeacherFacts], places: Sequence[int], taps: tuple[str, ...]
) -> tuple[Wanted, str]:
    """What is asked for with every batch, and why in one sentence. UserError if the form that is named cannot be.

    `facts` of the distinct teachers; `places[i]` is which of them stands at `spec.teachers[i]`.
    """
    objective = spec.objective
    if objective.kd_ratio == 0.0:
        return Wanted(payload=None, taps=taps), "inner values beside the labels, as objective.kd_ratio is 0"
    if objective.teacher_payload == "auto":
        form, why = _smallest_exact(facts)
    else:
        form, why = objective.teacher_payload, "as objective.teacher_payload says"
    if form == "hidden_states":
        _check_heads(spec, facts, places)
    sizes = ", ".join(f"{size:,} bytes" for size in (_bytes(form, one, objective.loss_top_k) for one in facts))
    top_k = objective.loss_top_k if form == "topk_logits" else 0
    own_logits = form != "hidden_states" and not all(one.has_plain_head for one in facts)
    wanted = Wanted(form, top_k, objective.temperature if top_k else 1.0, own_logits, taps)
    return wanted, f"{form}, {sizes} a position{' beside the inner values' if taps else ''}, {why}"


def _smallest_exact(facts: Sequence[TeacherFacts]) -> tuple[PayloadForm, str]:
    """Hidden states are exact where the head is all there is after them."""
    if not all(one.has_plain_head for one in facts):
        return "full_logits", "as a teacher's head does more than its hidden states and weights say"
    hidden, full = (sum(_bytes(form, one, 0) for one in facts) for form in ("hidden_states", "full_logits"))
    if hidden <= full:
        return "hidden_states", f"the smaller exact form (full_logits: {full:,} bytes)"
    return "full_logits", f"the smaller exact form (hidden_states: {hidden:,} bytes)"


def _bytes(form: str, facts: TeacherFacts, top_k: int) -> int:
    if form == "topk_logits":
        return _TOPK_BYTES * min(top_k, facts.num_tokens) + 4
    return facts.item_bytes * (facts.shape.hidden_size if form == "hidden_states" else facts.num_tokens)


def _check_heads(spec: DistillSpec, facts: Sequence[TeacherFacts], places: Sequence[int]) -> None:
    for index, one in enumerate(facts):
        if not one.has_plain_head:
            model = spec.teachers[places.index(index)].model
            share = f"{one.head_error:.1%} of the largest logit, where rounding explains {one.head_tolerance:.2%}"
            raise UserError(
                "PAYLOAD_INEXACT",
                f"objective.teacher_payload: hidden_states would not be exact for {model}: its logits differ "
                f"from its head times its hidden states by {share}; use full_logits, topk_logits or auto",
            )
