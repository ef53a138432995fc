"""Stage 0 in bf16: gradients add up in float32 where torch can, and where it cannot in the precision of the weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainer.training_spec import TrainingSpec
from trainer.zero_layout import layout_of

SLOPES = (1.0, *[2.0**-9] * 64)
"""In bfloat16 each of the small ones is lost beside the first."""


def summed(*, whole: bool) -> torch.Tensor:
    """The gradient of a weight after a step of `SLOPES`; without `whole` it has none before the last of them."""
    weight, idle = (torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = SimpleNamespace(fp16_groups=[[weight, idle]])
    training = TrainingSpec(max_steps=1, precision="bf16", zero_stage=0)
    layout = layout_of(SimpleNamespace(optimizer=optimizer), torch.optim.AdamW([weight, idle]), training)
    for slope in SLOPES[:-1] if whole else ():
        (weight * slope).sum().backward()
    layout.before_reduction()
    assert [gradient.dtype for gradient in layout.gradients()] == [weight.grad.dtype] * 2
    assert torch.equal(idle.grad, torch.zeros_like(idle.grad))
    (weight * SLOPES[-1]).sum().backward()
    return weight.grad


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch before 2.10 adds up in bfloat16")
def test_gradients_add_up_in_float32():
    assert summed(whole=True).tolist() == [sum(SLOPES)] * 3
    assert summed(whole=False).dtype == torch.float32


def test_without_gradients_of_another_precision_they_are_of_the_weights(monkeypatch):
    """As with torch 2.8 and 2.9, where float32 is refused as the gradient of such a weight."""
    monkeypatch.setattr("trainer.zero_layout._FLOAT32_SUMS", False)
    assert summed(whole=True).dtype == torch.bfloat16
    assert summed(whole=False).tolist() == [SLOPES[-1]] * 3
