"""From logits to the next token of each row, every row by its own settings. Shapes: B rows, V vocabulary.

A row's draws come from its own generator, so that its text does not depend on who else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.engine import Sampling


def generator(sampling: Sampling) -> torch.Generator:
    """A fresh source of draws on the CPU, whatever the model runs on."""
    source = torch.Generator()
    if sampling.seed is None:
        source.seed()
    else:
        source.manual_seed(sampling.seed)
    return source


def choose(logits_BV: Tensor, rows: Sequence[tuple[Sampling, torch.Generator]]) -> list[int]:
    """The next token of each row."""
    greedy_B: list[int] = logits_BV.argmax(-1).tolist()
    drawn = [index for index, (sampling, _) in enumerate(rows) if not sampling.is_greedy]
    if not drawn:
        return greedy_B
    chosen = _draw(logits_BV[drawn].float(), [rows[index] for index in drawn])
    for index, token in zip(drawn, chosen, strict=True):
        greedy_B[index] = token
    return greedy_B


def _draw(logits_BV: Tensor, rows: Sequence[tuple[Sampling, torch.Generator]]) -> list[int]:
    """Nucleus sampling (arXiv 1904.09751), by inverse CDF: the fewest tokens whose probability reaches top_p."""
    device = logits_BV.device
    temperature_B = torch.tensor([sampling.temperature for sampling, _ in rows], device=device, dtype=torch.float64)
    top_p_B = torch.tensor([sampling.top_p for sampling, _ in rows], device=device, dtype=torch.float64)
    uniform_B = torch.stack([torch.rand((), generator=source, dtype=torch.float64) for _, source in rows]).to(device)
    scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature_B[:, None]
    probability_BV, token_BV = scaled_BV.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before_BV = probability_BV.cumsum(-1) - probability_BV
    kept_BV = probability_BV.masked_fill(before_BV >= top_p_B[:, None], 0)
    kept_BV[:, 0] = probability_BV[:, 0]
    cumulative_BV = kept_BV.cumsum(-1)
    position_B1 = torch.searchsorted(cumulative_BV, (uniform_B * cumulative_BV[:, -1])[:, None], right=True)
    position_B1 = torch.minimum(position_B1, (kept_BV > 0).sum(-1, keepdim=True) - 1)
    chosen: list[int] = token_BV.gather(-1, position_B1)[:, 0].tolist()
    return chosen
