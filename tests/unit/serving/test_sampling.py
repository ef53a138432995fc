"""How a token is chosen: each cut, penalty and draw against its definition, and against what `transformers` does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as peer

from serving.engine import Sampling
from serving.sampling import CannotChoose, Chooser, Chosen, choose

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0]).log_softmax(-1)
SIZE = 40


def chooser(sampling, size=4, **more) -> Chooser:
    return Chooser(sampling, num_tokens=size, **more)


def tokens(logits, choosers) -> list[int]:
    return [each.token for each in choose(logits, choosers)]


def frequencies(sampling: Sampling, draws: int = 4000, logits: torch.Tensor = LOGITS) -> torch.Tensor:
    """How often each token comes, drawn by rows of one batch with seeds of their own."""
    rows = [
        chooser(
            Sampling(**{name: getattr(sampling, name) for name in sampling.__slots__} | {"seed": seed}), len(logits)
        )
        for seed in range(draws)
    ]
    return torch.bincount(torch.tensor(tokens(logits.expand(draws, -1), rows)), minlength=len(logits)) / draws


def test_temperature_zero_is_the_most_likely_token():
    assert frequencies(Sampling(temperature=0), draws=20).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    expected = (LOGITS / temperature).softmax(-1)
    torch.testing.assert_close(frequencies(Sampling(temperature)), expected, atol=0.03, rtol=0)


def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    probabilities = LOGITS.exp()
    two = float(probabilities[:2].sum())
    seen = frequencies(Sampling(1.0, top_p=two - 1e-3))
    torch.testing.assert_close(seen[:2], probabilities[:2] / two, atol=0.03, rtol=0)
    assert seen[2:].tolist() == [0, 0]
    assert frequencies(Sampling(1.0, top_p=1e-9), draws=200)[0] == 1


logits_lists = st.lists(st.integers(-400, 400), min_size=SIZE, max_size=SIZE, unique=True)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 25, 400]),
    min_p=st.sampled_from([0.0, 0.01, 0.2]),
)


def kept_by_the_peer(scores: torch.Tensor, sampling: Sampling) -> set[int]:
    chain = [peer.TemperatureLogitsWarper(sampling.temperature)]
    if 0 < sampling.top_k < SIZE:
        chain.append(peer.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(peer.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(peer.MinPLogitsWarper(sampling.min_p))
    for each in chain:
        scores = each(None, scores)
    return set(scores[0].isfinite().nonzero()[:, 0].tolist())


@settings(deadline=None)
@given(logits_lists, samplings)
def test_the_cuts_keep_what_transformers_keeps(numbers, sampling):
    from serving.sampling import _cut

    logits = torch.tensor([numbers]) / 100
    scaled = (logits - logits.amax()) / sampling.temperature
    _cut(scaled, [sampling])
    assert set(scaled[0].isfinite().nonzero()[:, 0].tolist()) == kept_by_the_peer(logits, sampling)


@settings(deadline=None)
@given(logits_lists, st.lists(st.integers(0, SIZE - 1), max_size=12), st.sampled_from([0.7, 1.3, 2.0]))
def test_a_repetition_penalty_is_that_of_transformers(numbers, seen, penalty):
    logits = torch.tensor([numbers]) / 100
    row = chooser(Sampling(0, repetition_penalty=penalty), SIZE, prompt_ids=seen[:6])
    for token in seen[6:]:
        row.advance(token)
    expected = peer.RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen], dtype=torch.long), logits)
    assert tokens(logits, [row]) == expected.argmax(-1).tolist() if seen else True


def test_presence_and_frequency_count_the_answer_alone():
    """As OpenAI defines them: logit - count * frequency - (count > 0) * presence."""
    logits = torch.tensor([[1.0, 0.55, 0.0, 0.0]])
    row = chooser(Sampling(0, presence_penalty=0.25, frequency_penalty=0.1), prompt_ids=[0, 0, 0, 0, 0])
    seen = []
    for _ in range(5):
        seen += tokens(logits, [row])
        row.advance(seen[-1])
    assert seen == [0, 0, 0, 1, 0]


def test_a_bias_is_added_and_ids_beyond_the_vocabulary_are_left_alone():
    assert tokens(LOGITS[None], [chooser(Sampling(0, logit_bias=((3, 9.0), (4, 100.0))))]) == [3]
    assert tokens(LOGITS[None], [chooser(Sampling(0, logit_bias=((0, -100.0),)))]) == [1]


def test_nucleus_looks_further_where_the_likely_ones_do_not_suffice():
    logits = -torch.arange(1000) / 2000
    seen = frequencies(Sampling(1.0, top_p=0.9), draws=3000, logits=logits)
    last = int((logits.softmax(-1).cumsum(-1) < 0.9).sum())
    assert seen[last + 1 :].sum() == 0
    assert seen[300 : last + 1].sum() > 0.5


@settings(deadline=None)
@given(samplings, st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_a_draw_depends_on_seed_and_place_alone(sampling, seed, place):
    seeded = Sampling(sampling.temperature, sampling.top_p, seed, sampling.top_k, sampling.min_p)
    other = torch.linspace(-1, 1, SIZE)
    logits = torch.sin(torch.arange(SIZE) * 3.7)
    row, again = chooser(seeded, SIZE), chooser(seeded, SIZE)
    for token in range(place):
        row.advance(token)
        again.advance(0)
    beside = [chooser(Sampling(0.8), SIZE), chooser(Sampling(0), SIZE)]
    alone = tokens(logits[None], [row])
    assert tokens(torch.stack([other, logits, other]), [beside[0], again, beside[1]])[1:2] == alone


def test_places_draw_apart():
    row, seen = chooser(Sampling(1.0, seed=4)), []
    for _ in range(200):
        seen += tokens(torch.zeros(1, 4), [row])
        row.advance(seen[-1])
    assert min(np.bincount(seen, minlength=4)) > 25


def test_greedy_and_drawn_rows_share_a_batch():
    rows = [chooser(Sampling(0)), chooser(Sampling(1.0, top_p=0.01)), chooser(Sampling(0, top_k=1))]
    assert tokens(torch.stack([LOGITS, LOGITS.flip(0), LOGITS]), rows) == [0, 3, 0]


WIDE = torch.sin(torch.arange(SIZE) * 3.7)


@pytest.mark.parametrize(
    ("extreme", "expected"),
    [
        *((Sampling(temperature), 11) for temperature in (1e-6, 1e-46, 5e-324)),
        (Sampling(2.0, top_k=1), 11),
        (Sampling(2.0, top_p=5e-324), 11),
        (Sampling(2.0, min_p=1.0), 11),
        (Sampling(2.0, seed=7, top_k=2**31 - 1), None),
        (Sampling(2.0, seed=7, min_p=5e-324), None),
        (Sampling(0, repetition_penalty=0.01), 30),
        (Sampling(0, repetition_penalty=10.0), 11),
        (Sampling(0, presence_penalty=-2.0, frequency_penalty=-2.0), 30),
        (Sampling(0, logit_bias=((30, 100.0), (11, -100.0))), 30),
    ],
)
def test_the_ends_of_every_range_reach_no_other_row(extreme, expected):
    """Of the row itself what is known of it; of the one beside it what it draws alone."""
    logits = torch.cos(torch.arange(SIZE) * 1.3) * 0.5
    logits[11], logits[30] = 1.0, 0.9

    def row():
        made = chooser(extreme, SIZE, prompt_ids=[30])
        if extreme.presence_penalty:
            made.advance(30)
        return made

    for seed in range(20):
        beside = Sampling(1.0, top_p=0.99, seed=seed)
        [alone] = tokens(WIDE[None], [chooser(beside, SIZE)])
        found = tokens(torch.stack([logits, WIDE]), [row(), chooser(beside, SIZE)])
        assert found == [tokens(logits[None], [row()])[0] if expected is None else expected, alone]


class Mask:
    """A guide that always allows the same."""

    finished = False

    def __init__(self, *words: int) -> None:
        self._words = words

    def mask(self):
        return np.array(self._words, dtype=np.int64).astype(np.uint32).view(np.int32)

    def advance(self, token_id):
        pass


def test_a_guides_bits_are_read_from_the_lowest_and_beyond_them_nothing_is_allowed():
    logits = torch.arange(SIZE, dtype=torch.float32)
    seen = choose(
        logits.repeat(3, 1), [chooser(Sampling(0), SIZE, guide=Mask(*words)) for words in [(6,), (1 << 31, 2), (0,)]]
    )
    assert [each.token for each in seen[:2]] == [2, 33]
    assert isinstance(seen[2], CannotChoose)


def test_a_row_of_no_numbers_cannot_choose_and_the_others_can():
    logits = torch.stack([LOGITS, torch.full_like(LOGITS, torch.nan), LOGITS])
    first, second, third = choose(logits, [chooser(Sampling(0)) for _ in range(3)])
    assert first == third == Chosen(0)
    assert isinstance(second, CannotChoose)


def test_settings_that_break_fail_their_own_row_alone():
    drawn = chooser(Sampling(1.0, top_p=0.01))
    breaks = chooser(Sampling(0, repetition_penalty=1e-40), prompt_ids=[1])
    first, second, third = choose(LOGITS.repeat(3, 1), [drawn, breaks, chooser(Sampling(0, top_k=1), logprobs=0)])
    assert first == Chosen(0)
    assert isinstance(second, CannotChoose)
    assert second.__cause__ is not None
    assert third.token == 0
