"""The part of a job file that says how the student is optimised. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from trainer.fields import Strict

_DECAY_RATIO = 0.1


class TrainingSpec(Strict):
    """How the student is optimised (AdamW)."""

    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps. Exactly one of max_steps and num_epochs."""
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Tokens of one optimizer step over all workers, padding included."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens one worker holds at once (a longer row goes alone); in float32 it changes no result beyond rounding."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3.0e-4
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    decay_ratio: Annotated[float, Field(ge=0, le=1, validate_default=True)] = _DECAY_RATIO
    """With `warmup_stable_decay`: share of the steps, the last ones, over which the learning rate falls to 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps float32 master weights, and adds the gradients of micro-batches up in float32."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO stage. In bf16 stage 2 holds less than 1, which keeps float32 gradients whole on every worker."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """`cpu` keeps master weights and optimizer state in the memory of the host and updates there; ZeRO 1 to 3."""
    gradient_checkpointing: bool = False
    """Computes inner activations again in the backward: less memory, more time, the same result."""
    prefetch_depth: Annotated[int, Field(ge=0, le=64)] = 2
    """Teacher requests in flight ahead of the student; changes no result."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    log_sample_ids: bool = False
    """Write down which samples each step learned from, in `samples-<rank>.jsonl` of the role's directory."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 7

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSpec:
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of max_steps and num_epochs")
        return self

    @field_validator("decay_ratio")
    @classmethod
    def _decay_after_warmup(cls, decay_ratio: float, info: ValidationInfo) -> float:
        warmup_ratio, schedule = info.data.get("warmup_ratio", 0.0), info.data.get("lr_scheduler_type")
        if schedule is not None and schedule != "warmup_stable_decay" and decay_ratio != _DECAY_RATIO:
            words = f"is read with lr_scheduler_type warmup_stable_decay only, and that is {schedule}"
            raise ValueError(f"{words}; set that, or leave this out")
        if schedule == "warmup_stable_decay" and warmup_ratio + decay_ratio > 1 + 1e-9:
            words = f"{decay_ratio:g} is too large beside warmup_ratio {warmup_ratio:g}"
            raise ValueError(f"{words}; with warmup_stable_decay the two are at most 1 together: lower one of them")
        return decay_ratio

    @field_validator("offload_optimizer")
    @classmethod
    def _offload_of_a_share(cls, offload_optimizer: str, info: ValidationInfo) -> str:
        if offload_optimizer != "none" and info.data.get("zero_stage") == 0:
            raise ValueError(f"{offload_optimizer} needs zero_stage 1, 2 or 3 and it is 0; raise it, or write none")
        return offload_optimizer
