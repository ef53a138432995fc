"""What a model makes of final hidden states that are there already: its own head, whatever that does, without its body.

For teachers whose logits are more than `Head` describes: their own code runs, in pieces, and their layers are not
computed a second time. Whether a family can be asked so is tried by the caller, against its logits of whole texts.

Shapes: R rows, D hidden size, V rows of the head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class _Given(BaseModelOutput):  # type: ignore[misc]
    """The answer of a body that was not asked; it has nothing else that bodies of some families give."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def logits_of_hidden(model: PreTrainedModel, hidden_RD: Tensor) -> Tensor:
    """[R, V]; rows are positions of one text to the model, whose head must not care."""
    at_least_one_RD = hidden_RD if len(hidden_RD) else hidden_RD.new_zeros(1, hidden_RD.shape[1])
    ids_1R = torch.zeros(1, len(at_least_one_RD), dtype=torch.long, device=hidden_RD.device)
    with _in_place_of(getattr(model, str(model.base_model_prefix)), _Given(last_hidden_state=at_least_one_RD[None])):
        logits_1RV: Tensor = model(input_ids=ids_1R, use_cache=False).logits
    return logits_1RV[0, : len(hidden_RD)]


@contextmanager
def _in_place_of(body: nn.Module, given: _Given) -> Iterator[None]:
    """Within the block the body answers with `given`."""
    body.forward = lambda *_args, **_kwargs: given
    try:
        yield
    finally:
        del body.forward
