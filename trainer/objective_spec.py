"""The part of a job file that says who teaches and by what: teachers, divergence, payload, inner matches. No torch.

Pairs that cannot be are refused here, where the job is submitted, with the reason.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.fields import Duration, ModelReference, Strict

TEACHER_NAME = r"^[a-z][a-z0-9-]{0,39}$"
DivergenceName = Literal[
    "forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl", "adaptive_kl", "tvd", "taid"
]
Payload = Literal["auto", "hidden_states", "topk_logits", "full_logits"]
Feature = Literal["hidden", "attention", "value_relation", "token_similarity", "rkd_distance", "rkd_angle"]

LAYERED: dict[str, tuple[str, ...]] = {
    "hidden": ("mse", "cosine"),
    "attention": ("mse", "kl"),
    "value_relation": ("kl",),
}
"""Features of single layers, and by which losses they are compared; the first is the default."""
COMPARES_SAMPLES = ("rkd_distance", "rkd_angle")
"""Features that need all samples of a step at once."""
_WEIGHTS = {"rkd_distance": 25.0, "rkd_angle": 50.0}
"""Published for RKD, arXiv 1904.05068; others weigh 1."""


class TeacherSpec(Strict):
    """A model that teaches. It is only read; equal models (and dtypes) are loaded once."""

    model: ModelReference
    """Hub id, directory, or registry reference name@alias."""
    name: Annotated[str, Field(pattern=TEACHER_NAME)] | None = None
    """What the column `data.columns.teacher_key` calls it; without it teacher-0, teacher-1, ..."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of this teacher where several answer; shares are taken of their sum."""
    shards: Annotated[int, Field(ge=1, le=64)] = 1
    """Actors that share its parameters (DeepSpeed ZeRO-3 inference)."""
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    """Groups of `shards` actors, each with all parameters, that answer side by side."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    answer_timeout: Duration = timedelta(minutes=15)
    """After so long without an answer its shards count as hanging and are started again."""


class MatchSpec(Strict):
    """One inner value of the teacher that the student imitates, beside the divergence."""

    feature: Feature
    """hidden, attention and value_relation belong to layers; the others read the final hidden states."""
    loss: Literal["mse", "cosine", "kl"] | None = None
    """hidden: mse (default) or cosine. attention: mse of scores (default, TinyBERT) or kl of probabilities (MiniLM)."""
    layer_mapping: Literal["last", "uniform", "all"] = "last"
    """last: the last layers. uniform: student layer m with teacher layer m * L_teacher / L_student. all: i with i."""
    layers: tuple[tuple[int, int], ...] | None = None
    """Instead of `layer_mapping`: pairs [teacher layer, student layer], from 1; 0 are the embeddings (hidden only)."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Of this term beside the divergence; 25 for rkd_distance, 50 for rkd_angle (as published), else 1."""

    @model_validator(mode="after")
    def _fits_together(self) -> MatchSpec:
        losses = LAYERED.get(self.feature, ())
        if self.loss is not None and self.loss not in losses:
            allowed = f"use {' or '.join(losses)}" if losses else "leave loss out"
            raise ValueError(f"loss: {self.feature} is not compared by {self.loss}; {allowed}")
        if self.layers is not None and not losses:
            raise ValueError(f"layers: {self.feature} reads the final hidden states; leave layers out")
        if self.layer_mapping != "last" and (self.layers is not None or not losses):
            why = "the pairs in layers say that already" if losses else f"{self.feature} reads the final hidden states"
            raise ValueError(f"layer_mapping: {self.layer_mapping} chooses layers, but {why}; leave this out")
        lowest = 0 if self.feature == "hidden" else 1
        if self.layers is not None and (not self.layers or min(min(pair) for pair in self.layers) < lowest):
            raise ValueError(f"layers: give at least one pair of layers from {lowest} on")
        return self

    @property
    def loss_name(self) -> str:
        """With its default in place."""
        return self.loss or LAYERED.get(self.feature, ("mse",))[0]

    @property
    def term_weight(self) -> float:
        return _WEIGHTS.get(self.feature, 1.0) if self.weight is None else self.weight


_READ_WITH: dict[str, tuple[str, tuple[object, ...]]] = {
    "beta": ("divergence", ("jsd",)),
    "skew_lambda": ("divergence", ("skewed_forward_kl", "skewed_reverse_kl")),
    "adaptive_kl_alpha": ("divergence", ("adaptive_kl",)),
    "taid_t_start": ("divergence", ("taid",)),
    "taid_t_end": ("divergence", ("taid",)),
    "taid_alpha": ("divergence", ("taid",)),
    "taid_beta": ("divergence", ("taid",)),
    "loss_top_k": ("teacher_payload", ("topk_logits",)),
    "loss_add_tail": ("teacher_payload", ("topk_logits",)),
    "seq_kd_max_new_tokens": ("seq_kd", (True,)),
}
"""Fields that mean something only beside a value of another one."""


class ObjectiveSpec(Strict):
    """L = kd_ratio * temperature^2 * divergence + (1 - kd_ratio) * cross-entropy + weighted intermediate matches."""

    divergence: DivergenceName = "forward_kl"
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """jsd: 0 is forward KL, 1 reverse KL, with no jump on the way."""
    skew_lambda: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """skewed_forward_kl, skewed_reverse_kl: share of the other side in the mixture."""
    adaptive_kl_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """adaptive_kl: mass of the teacher's likeliest tokens that counts as the head."""
    taid_t_start: Annotated[float, Field(ge=0, le=1)] = 0.4
    """taid: share of the teacher in the target at the first step."""
    taid_t_end: Annotated[float, Field(ge=0, le=1)] = 1.0
    taid_alpha: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """taid: how fast progress of the loss raises the share."""
    taid_beta: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """taid: momentum of that progress."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    kd_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    teacher_payload: Payload = "auto"
    """What travels from teacher to student for each unmasked position; auto picks the smallest exact one."""
    loss_top_k: Annotated[int, Field(ge=1, le=65536)] = 64
    """topk_logits: tokens whose logits travel."""
    loss_add_tail: bool = True
    """topk_logits: all other tokens form one more bucket; without it both sides are renormalised over k (biased)."""
    kd_loss_mode: Literal["sum", "averaged_logits", "select_teacher"] = "sum"
    """Of several teachers: weighted losses, weighted logits, or at each position the one who knows the label best."""
    intermediate_matches: tuple[MatchSpec, ...] = ()
    """Inner values of the first teacher that the student imitates as well."""
    seq_kd: bool = False
    """Let the first teacher write the completions of the training prompts (sequence-level KD, arXiv 1606.07947)."""
    seq_kd_max_new_tokens: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Most tokens of a written completion; without it what prompts leave of `data.max_length`, at most 256."""

    @model_validator(mode="after")
    def _nothing_is_set_in_vain(self) -> ObjectiveSpec:
        """By values and not by what was written: a stored job file has every field."""
        for field, (reader, values) in _READ_WITH.items():
            chosen = getattr(self, reader)
            if chosen not in values and getattr(self, field) != type(self).model_fields[field].default:
                needed = " or ".join(str(value).lower() for value in values)
                rule = f"is read with {reader} {needed} only, and that is {str(chosen).lower()}"
                raise ValueError(f"{field}: {rule}; set that, or leave this out")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> ObjectiveSpec:
        if self.taid_t_end < self.taid_t_start:
            raise ValueError(f"taid_t_end: {self.taid_t_end} is before taid_t_start ({self.taid_t_start})")
        if self.teacher_payload == "topk_logits" and self.kd_loss_mode != "sum":
            raise ValueError(
                f"kd_loss_mode: {self.kd_loss_mode} needs the same tokens of every teacher, which topk_logits does not "
                "bring; use teacher_payload hidden_states or full_logits"
            )
        return self

    @property
    def compares_samples(self) -> bool:
        """Whether a term needs all samples of a step at once."""
        return any(match.feature in COMPARES_SAMPLES for match in self.intermediate_matches)
