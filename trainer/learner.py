"""The student as one module: token ids in, sums out, so that sharding engines see all of it in one forward.

The loss lives in a module that owns the head's weight, since ZeRO-3 gathers a weight for the module that owns it,
and gathers it again for the backward by the tensors that the module returns: hence a plain dict of tensors.

Shapes: B rows, T positions of a row, N learned positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from trainer.batch import Batch
from trainer.faculty import Answered
from trainer.head import Head
from trainer.models import split
from trainer.objective import Forward, Objective, Step, combine
from trainer.taps import reads_attention, tap_attention, tapped

LOSS = "loss"


class LossHead(nn.Module):
    """The output embedding and the objective at the end of it."""

    def __init__(self, head: Head, objective: Objective) -> None:
        super().__init__()
        self.register_parameter("weight", _parameter(head.weight_VD))
        self.register_parameter("bias", None if head.bias_V is None else _parameter(head.bias_V))
        self.extra = nn.ModuleDict(dict(objective.build()))
        self._head = replace(head, bias_V=None)  # for its transforms: the weight is looked up with each use
        self._objective = objective

    def forward(
        self,
        batch: Batch,
        hidden_ND: Tensor,
        inner: Mapping[str, Tensor],
        answers: Sequence[Answered],
        step: Step,
    ) -> dict[str, Tensor]:
        bias_V = None if self.bias is None else _parameter(self.bias)
        head = replace(self._head, weight_VD=_parameter(self.weight), bias_V=bias_V)
        terms = self._objective.terms(Forward(batch, hidden_ND, head, inner, answers, step, self.extra))
        return {LOSS: combine(terms), **{name: term.sum.detach() for name, term in terms.items()}}


class Learner(nn.Module):
    """A causal language model under an objective."""

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.loss_head = LossHead(split(model).head, objective)
        self._taps = objective.taps
        if reads_attention(objective.taps):
            tap_attention(model)

    def forward(self, batch: Batch, answers: Sequence[Answered], step: Step) -> dict[str, Tensor]:
        """Sums over the learned positions: the loss under `LOSS`, and every term by its name, for people."""
        hidden_ND, inner = tapped(self.model, batch, self._taps)
        sums: dict[str, Tensor] = self.loss_head(batch, hidden_ND, inner, answers, step)
        return sums


def _parameter(tensor: Tensor | nn.Module | None) -> nn.Parameter:
    assert isinstance(tensor, nn.Parameter)
    return tensor
