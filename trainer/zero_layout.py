"""Where DeepSpeed keeps float32 master weights and final gradients, stage by stage.

The only place that reaches into the fields of its ZeRO optimizers: made against DeepSpeed 0.19, held by the tests of
resume in every stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.spec import TrainingSpec

_FLOAT32_SUMS = hasattr(torch.Tensor, "grad_dtype")
"""Before 2.10 torch knows no gradients of another precision than their tensor's."""


class Layout(Protocol):
    """Where a ZeRO stage keeps float32 masters and final gradients."""

    is_sharded: bool

    def masters(self) -> list[Tensor]: ...

    def gradients(self) -> list[Tensor]: ...

    def copy_to_weights(self) -> None:
        """After masters were replaced: rounds them into the weights of the forward pass. Collective."""

    def before_reduction(self) -> None:
        """Before the last backward of a step, in which the workers' gradients are joined."""


@dataclass(frozen=True)
class _Plain:
    """Stage 0 in float32: the weights are the masters."""

    engine: Any
    adamw: torch.optim.AdamW
    is_sharded = False

    def masters(self) -> list[Tensor]:
        return [parameter for group in self.adamw.param_groups for parameter in group["params"]]

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.masters() if parameter.grad is not None]

    def copy_to_weights(self) -> None:
        return

    def before_reduction(self) -> None:
        return


@dataclass(frozen=True)
class _Mixed:
    """Stage 0 in bf16: whole float32 masters beside the weights, whose gradients torch adds up in float32 if it can."""

    engine: Any
    adamw: torch.optim.AdamW
    is_sharded = False

    def __post_init__(self) -> None:
        if _FLOAT32_SUMS:
            for weight in self._weights():
                weight.grad_dtype = torch.float32

    def masters(self) -> list[Tensor]:
        return [master for group in self.engine.optimizer.fp32_groups for master in group]

    def gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._weights() if weight.grad is not None]

    @torch.no_grad()
    def copy_to_weights(self) -> None:
        for weight, master in zip(self._weights(), self.masters(), strict=True):
            weight.copy_(master)

    def before_reduction(self) -> None:
        """DeepSpeed would fill in what has no gradient (experts that nobody asked) in the precision of the weights.

        Which is right where torch takes no other.
        """
        for weight in self._weights():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight, dtype=torch.float32 if _FLOAT32_SUMS else None)

    def _weights(self) -> list[Tensor]:
        return [weight for group in self.engine.optimizer.fp16_groups for weight in group]


@dataclass(frozen=True)
class _Partitioned:
    """Stages 1 and 2: each worker holds a flat part of the masters of every parameter group."""

    engine: Any
    adamw: torch.optim.AdamW
    is_sharded = True

    def masters(self) -> list[Tensor]:
        return list(self.engine.optimizer.single_partition_of_fp32_groups)

    def gradients(self) -> list[Tensor]:
        return [gradient for group in self.engine.optimizer.averaged_gradients.values() for gradient in group or ()]

    def copy_to_weights(self) -> None:
        self.engine.optimizer.update_lp_params()

    def before_reduction(self) -> None:
        return


class _WholeGradients(_Partitioned):
    """Stage 1 in bf16: each worker adds up whole gradients in float32, and holds a flat part of the masters."""

    def masters(self) -> list[Tensor]:
        return list(self.engine.optimizer.fp32_groups_flat_partition)

    def gradients(self) -> list[Tensor]:
        return list(self.engine.optimizer.fp32_groups_gradient_flat_partition)

    def before_reduction(self) -> None:
        """DeepSpeed would clip, on each worker, only what that worker itself found a gradient of."""
        for has_gradients in self.engine.optimizer.fp32_groups_has_gradients:
            has_gradients[:] = [True] * len(has_gradients)


class _PartitionedWeights(_Partitioned):
    """Stage 3: the weights of the forward pass are parted too."""

    def masters(self) -> list[Tensor]:
        return list(self.engine.optimizer.fp32_partitioned_groups_flat)

    def copy_to_weights(self) -> None:
        optimizer = self.engine.optimizer
        for sub_group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


class _OnHost(_Partitioned):
    """Stages 1 and 2 with `offload_optimizer: cpu`: final gradients lie beside the masters, in host memory."""

    def gradients(self) -> list[Tensor]:
        return _gradients_beside(self.masters())


class _WeightsOnHost(_PartitionedWeights):
    """Stage 3 with `offload_optimizer: cpu`."""

    def gradients(self) -> list[Tensor]:
        return _gradients_beside(self.masters())


def _gradients_beside(masters: list[Tensor]) -> list[Tensor]:
    """Once they are there: DeepSpeed copies them off the device without waiting until its own step."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return [master.grad for master in masters if master.grad is not None]


def layout_of(engine: Any, adamw: torch.optim.AdamW, training: TrainingSpec) -> Layout:
    """How DeepSpeed lays out this stage and precision."""
    if training.zero_stage == 0:
        return _Plain(engine, adamw) if training.precision == "fp32" else _Mixed(engine, adamw)
    if training.offload_optimizer == "cpu":
        return _OnHost(engine, adamw) if training.zero_stage < 3 else _WeightsOnHost(engine, adamw)
    if training.zero_stage == 1 and training.precision == "bf16":
        return _WholeGradients(engine, adamw)
    return _Partitioned(engine, adamw) if training.zero_stage < 3 else _PartitionedWeights(engine, adamw)
