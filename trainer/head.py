"""The output head of a language model as plain tensors: logits of hidden states, and the way back.

Shapes: R rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """Logits are hidden_RD @ weight_VD.T + bias_V, then scaled and soft-capped."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    """Of the logits: Cohere's `logit_scale`, one over Granite's `logits_scaling`, Falcon-H1's `lm_head_multiplier`."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap): Gemma's `final_logit_softcapping`."""

    def first(self, num_tokens: int) -> Head:
        """Only the rows of real tokens: padded rows get no mass and no gradient."""
        bias_V = None if self.bias_V is None else self.bias_V[:num_tokens]
        return replace(self, weight_VD=self.weight_VD[:num_tokens], bias_V=bias_V)

    def to(self, device: torch.device) -> Head:
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return replace(self, weight_VD=self.weight_VD.to(device), bias_V=bias_V)

    def logits_RV(self, hidden_RD: Tensor) -> Tensor:
        """In the head's dtype, as the model itself gives them."""
        logits_RV = hidden_RD.to(self.weight_VD.dtype) @ self.weight_VD.T
        if self.bias_V is not None:
            logits_RV += self.bias_V
        if self.scale != 1.0:
            logits_RV *= self.scale
        return logits_RV if self.softcap is None else logits_RV.div_(self.softcap).tanh_().mul_(self.softcap)

    def before_transforms(self, gradient_RV: Tensor, logits_RV: Tensor) -> Tensor:
        """From the gradient for `logits_RV` to the one for the plain product."""
        if self.softcap is not None:
            gradient_RV = gradient_RV * (1.0 - (logits_RV / self.softcap) ** 2)
        return gradient_RV if self.scale == 1.0 else gradient_RV * self.scale
