"""Who owns parameters and optimizer: DeepSpeed (ZeRO 0 to 3), or plain torch. On one worker both give the same weights.

An engine turns a loss into an update and gives up its state as plain named tensors. What the loss is, when to stop and
where the state is written are not its business.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.batch import Batch
from trainer.device import compute_device, import_deepspeed, keep_freed_memory, open_lone_group
from trainer.faculty import Answered
from trainer.learner import Learner
from trainer.models import DTYPES
from trainer.objective import Step
from trainer.peers import Peers
from trainer.spec import TrainingSpec
from trainer.zero_layout import layout_of

STATE_KEYS = ("master", "exp_avg", "exp_avg_sq", "step")


class Engine(Protocol):
    """Micro-batches call `forward` and `backward`; the last `backward` of a step makes gradients final."""

    def forward(self, batch: Batch, answers: Sequence[Answered], step: Step) -> dict[str, Tensor]: ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds the gradient of `loss`; gradients of all workers are averaged, so a sum is scaled by the world."""

    def grad_norm(self) -> float:
        """Euclidean norm of the final gradient over all workers; not finite if any part is not (I8). Collective."""

    def step(self, learning_rate: float) -> None:
        """Clips, updates, and forgets the gradient. Collective."""

    def state(self) -> dict[str, Tensor]:
        """This worker's share of master weights and optimizer state, on the CPU."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state`, with the same topology. Collective."""

    def model_state(self) -> dict[str, Tensor]:
        """Whole weights by their names in the model, on the CPU of the first worker ({} elsewhere). Collective."""

    def close(self) -> None:
        """Lets go of hooks and buffers."""


class TorchEngine:
    """One worker, no sharding; in bf16 the masters are kept in float32, with `offload_optimizer` on the host."""

    def __init__(self, learner: Learner, training: TrainingSpec, peers: Peers) -> None:
        assert peers.world == 1, "the torch engine is for one worker"
        self._learner = _placed(learner, training)
        self._max_grad_norm = training.max_grad_norm
        self._weights = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self._masters = [_master(weight, training) for weight in self._weights]
        groups = _decay_groups(self._weights, self._masters, training.weight_decay)
        self._adamw = _adamw(groups, training)

    def forward(self, batch: Batch, answers: Sequence[Answered], step: Step) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = self._learner(batch, answers, step)
        return sums

    def backward(self, loss: Tensor, *, last: bool) -> None:  # noqa: ARG002  sums are in float32 at once
        loss.backward()  # type: ignore[no-untyped-call]
        for master, weight in zip(self._masters, self._weights, strict=True):
            if master is not weight and weight.grad is not None:
                gradient = weight.grad.to(master.device, torch.float32)
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                weight.grad = None

    def grad_norm(self) -> float:
        return float(_square_sum([master.grad for master in self._masters if master.grad is not None]) ** 0.5)

    def step(self, learning_rate: float) -> None:
        _set_learning_rate(self._adamw, learning_rate)
        nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._copy_to_weights()

    def state(self) -> dict[str, Tensor]:
        return _optimizer_state(self._adamw, self._masters)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        _load_optimizer_state(self._adamw, self._masters, state)
        self._copy_to_weights()

    def model_state(self) -> dict[str, Tensor]:
        return {name: _on_cpu(tensor) for name, tensor in _saved_tensors(self._learner.model)}

    def close(self) -> None:
        self._adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _copy_to_weights(self) -> None:
        for master, weight in zip(self._masters, self._weights, strict=True):
            if master is not weight:
                weight.copy_(master)


class DeepSpeedEngine:
    """ZeRO by `training.zero_stage`, our own AdamW inside; gradients of micro-batches add up in float32."""

    def __init__(self, learner: Learner, training: TrainingSpec, peers: Peers) -> None:
        open_lone_group()
        self._deepspeed = import_deepspeed()
        self._learner = _placed(learner, training)
        self._peers = peers
        trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
        self._adamw = _adamw(_decay_groups(trained, trained, training.weight_decay), training)
        self._engine, *_ = self._deepspeed.initialize(
            model=learner, optimizer=self._adamw, config=deepspeed_config(training), dist_init_required=False
        )
        self._adamw.state.clear()  # stage 0 in bf16 takes a step over zeros at its start, which must not be counted
        self._layout = layout_of(self._engine, self._adamw, training)

    def forward(self, batch: Batch, answers: Sequence[Answered], step: Step) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = self._engine(batch, answers, step)
        return sums

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        if last:
            self._layout.before_reduction()
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # only counts the micro-batch: the boundary is not reached

    def grad_norm(self) -> float:
        square = _square_sum(self._layout.gradients())
        return float((self._peers.sum([square])[0] if self._layout.is_sharded else square) ** 0.5)

    def step(self, learning_rate: float) -> None:
        _set_learning_rate(self._adamw, learning_rate)
        self._engine.step()

    def state(self) -> dict[str, Tensor]:
        return _optimizer_state(self._adamw, self._layout.masters())

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        _load_optimizer_state(self._adamw, self._layout.masters(), state)
        self._layout.copy_to_weights()

    def model_state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, tensor in _saved_tensors(self._learner.model):
            with self._deepspeed.zero.GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
                if self._peers.is_first:
                    found[name] = _on_cpu(tensor)
        return found

    def close(self) -> None:
        self._engine.destroy()
        del self._engine, self._layout
        gc.collect()


ENGINES: dict[str, Callable[[Learner, TrainingSpec, Peers], Engine]] = {
    "deepspeed": DeepSpeedEngine,
    "torch": TorchEngine,
}


def deepspeed_config(training: TrainingSpec) -> dict[str, Any]:
    """Batch sizes are nominal: the loop cuts micro-batches by tokens and scales its sums itself."""
    offload = {"offload_optimizer": {"device": "cpu"}} if training.offload_optimizer == "cpu" else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": training.precision == "bf16", "immediate_grad_update": True},  # holds none in bf16 besides
        **_sums_in_float32(training),
        "zero_optimization": {"stage": training.zero_stage, "overlap_comm": torch.cuda.is_available(), **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # which would be compiled at its first use, and rounds otherwise
        "steps_per_print": None,
    }


def _sums_in_float32(training: TrainingSpec) -> dict[str, Any]:
    """Of bf16 gradients over micro-batches, and over workers where stages 0 and 1 exchange them once a step.

    Stages 2 and 3 exchange those of every micro-batch, in bf16. Stage 0 is the affair of its layout: DeepSpeed has no
    float32 sums there.
    """
    if training.precision != "bf16":
        return {}
    exchanged = {"communication_data_type": "fp32"} if training.zero_stage < 2 else {}
    added_up = {"data_types": {"grad_accum_dtype": "fp32"}} if training.zero_stage > 0 else {}
    return exchanged | added_up


def _placed(learner: Learner, training: TrainingSpec) -> Learner:
    """On the device, weights in the precision of training; buffers keep theirs, as in the model that is served.

    Rotary frequencies rounded to bfloat16 would turn far positions by whole fractions of a radian.
    """
    keep_freed_memory()
    learner.to(device=compute_device())
    for parameter in learner.parameters():
        parameter.data = parameter.data.to(DTYPES[training.precision])
    return learner


def _master(weight: nn.Parameter, training: TrainingSpec) -> nn.Parameter:
    """The weight itself where it can be its own master."""
    device = torch.device("cpu") if training.offload_optimizer == "cpu" else weight.device
    if weight.dtype == torch.float32 and weight.device == device:
        return weight
    return nn.Parameter(weight.detach().to(device, torch.float32))


def _decay_groups(weights: list[Any], masters: list[Any], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, norms and biases are not."""
    matrices = [master for weight, master in zip(weights, masters, strict=True) if weight.ndim > 1]
    vectors = [master for weight, master in zip(weights, masters, strict=True) if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _adamw(groups: list[dict[str, Any]], training: TrainingSpec) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=0.0, betas=(training.adam_beta1, training.adam_beta2), fused=True)


def _set_learning_rate(adamw: torch.optim.AdamW, learning_rate: float) -> None:
    for group in adamw.param_groups:
        group["lr"] = learning_rate


def _square_sum(gradients: Sequence[Tensor]) -> float:
    """Summed squares; norms of each tensor first, so that float32 overflows only where the gradient itself is lost."""
    if not gradients:
        return 0.0
    norms = torch._foreach_norm([gradient.detach().float() for gradient in gradients])
    return float(torch.stack(norms).double().square().sum())


def _optimizer_state(adamw: torch.optim.AdamW, masters: Sequence[Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for place, master in enumerate(masters):
        found[f"{place}.master"] = _on_cpu(master)
        found |= {f"{place}.{key}": _on_cpu(adamw.state[master][key]) for key in STATE_KEYS[1:] if adamw.state[master]}
    return found


@torch.no_grad()
def _load_optimizer_state(adamw: torch.optim.AdamW, masters: Sequence[Tensor], state: Mapping[str, Tensor]) -> None:
    for place, master in enumerate(masters):
        master.copy_(state[f"{place}.master"])
        if f"{place}.step" in state:
            kept = {key: state[f"{place}.{key}"].to(master.device).clone() for key in STATE_KEYS[1:]}
            adamw.state[master] = kept


def _saved_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters (tied ones once) and persistent buffers, by name."""
    parameters = dict(model.named_parameters())
    names = set(model.state_dict().keys())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in names}
    return [*parameters.items(), *buffers.items()]


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
