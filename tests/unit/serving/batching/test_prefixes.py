"""Which beginnings of prompts are kept, and what is found again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.batching.prefixes import BLOCK, PrefixPool, block_names


def prompt(*blocks: int) -> list[int]:
    """A prompt of whole blocks, each of one number, and one token behind them."""
    return [block for block in blocks for _ in range(BLOCK)] + [99]


def segment(tokens):
    numbers = torch.tensor(tokens, dtype=torch.float32)[:, None, None]
    return [(numbers, -numbers)]


def learn(pool: PrefixPool, tokens: list[int]) -> int:
    """What the batch does once a prompt is computed; how many tokens are kept of it."""
    names = block_names(tokens)
    count = pool.worth_keeping(names)
    if count:
        pool.keep(names[:count], segment(tokens[: count * BLOCK]))
    return count * BLOCK


def found(pool: PrefixPool, tokens: list[int]) -> int:
    hit = pool.find(block_names(tokens))
    if hit is None:
        return 0
    prefix, count = hit
    assert prefix.segment[0][0][:count, 0, 0].tolist() == tokens[:count]
    return count


def test_a_beginning_is_kept_when_it_comes_the_second_time():
    pool = PrefixPool(10 * BLOCK)
    assert learn(pool, prompt(1, 2, 3)) == 0
    assert found(pool, prompt(1, 2, 9)) == 0
    assert learn(pool, prompt(1, 2, 4)) == 2 * BLOCK
    assert found(pool, prompt(1, 2, 9)) == 2 * BLOCK
    assert found(pool, prompt(1, 9)) == BLOCK
    assert found(pool, prompt(2, 2)) == 0


def test_a_longer_one_takes_the_place_of_what_it_begins_with():
    pool = PrefixPool(10 * BLOCK)
    for _ in range(2):
        learn(pool, prompt(1, 2))
    for _ in range(2):
        learn(pool, prompt(1, 2, 3, 4))
    assert pool.num_tokens == 4 * BLOCK
    assert found(pool, prompt(1, 2, 3, 4)) == 4 * BLOCK


def test_one_token_at_least_is_left_for_the_model():
    assert block_names([1] * BLOCK) == []
    assert len(block_names([1] * (BLOCK + 1))) == 1


def test_what_was_used_longest_ago_goes_first():
    pool = PrefixPool(2 * BLOCK)
    for block in (1, 2):
        for _ in range(2):
            learn(pool, prompt(block))
    assert found(pool, prompt(1))
    for _ in range(2):
        learn(pool, prompt(3))
    assert [bool(found(pool, prompt(block))) for block in (1, 2, 3)] == [True, False, True]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=30), st.integers(0, 6))
def test_what_is_found_is_what_the_prompt_begins_with_and_the_capacity_holds(prompts, blocks):
    pool = PrefixPool(blocks * BLOCK)
    for each in prompts:
        found(pool, prompt(*each))
        learn(pool, prompt(*each))
        assert pool.num_tokens <= blocks * BLOCK
        assert pool.num_tokens == sum(prefix.num_tokens for prefix in pool._kept.values())
        assert set(pool._by_name.values()) <= set(pool._kept.values())
