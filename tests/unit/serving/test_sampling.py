"""How a token is drawn."""

from __future__ import annotations

import pytest
import torch

from serving.engine import Sampling
from serving.sampling import choose

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(-1)


def frequencies(sampling: Sampling, draws: int = 4000) -> torch.Tensor:
    """How often each token comes, drawn by rows of one batch."""
    rows = [(sampling, torch.Generator().manual_seed(seed)) for seed in range(draws)]
    return torch.bincount(torch.tensor(choose(LOGITS.expand(draws, -1), rows)), minlength=4) / draws


def test_temperature_zero_is_the_most_likely_token():
    assert frequencies(Sampling(temperature=0), draws=20).tolist() == [1, 0, 0, 0]


def test_draws_follow_the_distribution():
    for temperature in (0.5, 1.0, 2.0):
        expected = (LOGITS / temperature).softmax(-1)
        torch.testing.assert_close(frequencies(Sampling(temperature)), expected, atol=0.03, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    probabilities = LOGITS.exp()
    two = float(probabilities[:2].sum())
    seen = frequencies(Sampling(1.0, top_p=two - 1e-3))
    torch.testing.assert_close(seen[:2], probabilities[:2] / two, atol=0.03, rtol=0)
    assert seen[2:].tolist() == [0, 0]
    assert frequencies(Sampling(1.0, top_p=1e-9), draws=200)[0] == 1


def test_greedy_and_drawn_rows_share_a_batch():
    rows = [(Sampling(0), torch.Generator()), (Sampling(1.0, top_p=0.01), torch.Generator())]
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    assert choose(logits, rows) == [0, 3]


@pytest.mark.parametrize("temperature", [1e-6, 1e-46, 5e-324])
def test_a_tiny_temperature_does_not_overflow(temperature):
    rows = [(Sampling(temperature), torch.Generator()), (Sampling(1.0), torch.Generator())]
    assert choose(LOGITS.repeat(2, 1) * 1e4, rows) == [0, 0]
