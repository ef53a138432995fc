"""One batch of sequences that grow together: left padding, one KV cache, a token per row and step.

Knows nothing of text, queues or clients; rows leave between steps. Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from serving.engine import Sampling
from serving.sampling import choose, generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Batch:
    """Rows that decode in lockstep; `step` gives the next token of each."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[Sampling],
        *,
        num_tokens: int,
    ) -> None:
        """`num_tokens`: entries of the vocabulary; rows that a head has beyond them are never chosen."""
        self._model = model
        self._num_tokens = num_tokens
        self._rows = [(each, generator(each)) for each in sampling]
        self._input_BT, self._mask_BT = _left_padded(prompts, model.device)
        self._position_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def step(self) -> list[int]:
        """Run the model on what is new, and choose one token for each row."""
        output = self._model(
            input_ids=self._input_BT,
            attention_mask=self._mask_BT,
            position_ids=self._position_BT,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens = choose(output.logits[:, -1, : self._num_tokens], self._rows)
        self._append(tokens)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows go."""
        index_B = torch.tensor(rows, device=self._mask_BT.device, dtype=torch.long)
        self._rows = [self._rows[row] for row in rows]
        self._input_BT = self._input_BT[index_B]
        self._mask_BT = self._mask_BT[index_B]
        self._position_BT = self._position_BT[index_B]
        self._cache.batch_select_indices(index_B)

    def _append(self, tokens: Sequence[int]) -> None:
        self._input_BT = torch.tensor(tokens, device=self._mask_BT.device)[:, None]
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._mask_BT[:, :1])], dim=-1)
        self._position_BT = self._position_BT[:, -1:] + 1


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask; padding is id 0, which the mask hides."""
    width = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids_BT, mask_BT
