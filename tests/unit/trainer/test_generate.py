"""Greedy decoding equals that of transformers, token for token, whatever the group and the company."""

import pytest
import torch
from transformers import DynamicCache

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA
from trainer.generate import TokenIds, generate
from trainer.models import fresh_model
from trainer.tokenizer import train_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["where is my card", "top up my account"], 300)


def sharp_model(config, tokenizer):
    """Logits far apart, so that rounding never decides which token is next."""
    return fresh_model({**config, "initializer_range": 0.4}, tokenizer, seed=5).eval()


def next_logits_of(model):
    def next_logits(ids_BT, mask_BS, positions_BT, cache: DynamicCache):
        output = model(
            input_ids=ids_BT, attention_mask=mask_BS, position_ids=positions_BT, past_key_values=cache, use_cache=True
        )
        return output.logits[:, -1]

    return next_logits


PROMPTS = [[10, 11, 12], [20], [30, 31, 32, 33, 34, 35, 36], [40, 41], [50, 51, 52]]


@pytest.mark.parametrize("config", [TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("most_at_once", [1, 2, None])
def test_equals_the_greedy_search_of_transformers(config, most_at_once, tokenizer, monkeypatch):
    if most_at_once:
        monkeypatch.setattr("trainer.generate.group_size", lambda *_: most_at_once)
    model = sharp_model(config, tokenizer)
    alone = [
        model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False
        )
        for prompt in PROMPTS
    ]
    expected = [one[0, len(prompt) :].tolist() for one, prompt in zip(alone, PROMPTS, strict=True)]
    assert any(len(set(one)) > 3 for one in expected)
    tokens = TokenIds.of(tokenizer)
    found = generate(next_logits_of(model), PROMPTS, 20, tokens, device=CPU)
    assert found == [one[: one.index(tokens.eos_ids[0])] if tokens.eos_ids[0] in one else one for one in expected]


def test_rows_end_each_at_its_own_end_token(tokenizer):
    """The script of each row is looked up by its first token; row 3 never ends."""
    scripts = {1: [5, 9], 2: [9], 3: [5, 6, 7, 8, 5, 6]}
    tokens = TokenIds(num_tokens=10, pad_id=0, eos_ids=(9,))
    seen = []

    def next_logits(ids_BT, mask_BS, positions_BT, cache):
        seen.append(tuple(ids_BT.shape))
        place = len(seen) - 1
        rows = next_logits.rows = ids_BT[:, -1].tolist() if place == 0 else next_logits.rows
        logits = torch.zeros(len(rows), 12)
        logits[:, 11] = 99.0  # a padded row of the head: never chosen
        for row, first in enumerate(rows):
            logits[row, scripts[first][min(place, len(scripts[first]) - 1)]] = 1.0
        return logits

    assert generate(next_logits, [[1], [2], [3]], 4, tokens, device=CPU) == [[5], [], [5, 6, 7, 8]]
    assert seen == [(3, 1)] * 4


def test_stops_as_soon_as_all_have_ended(tokenizer):
    calls = []

    def next_logits(ids_BT, mask_BS, positions_BT, cache):
        calls.append(mask_BS.shape[1])
        return torch.eye(4)[[3] * len(ids_BT)]

    assert generate(next_logits, [[1, 2], [1]], 50, TokenIds(4, 0, (3,)), device=CPU) == [[], []]
    assert calls == [2]


def test_nothing_to_do_does_nothing(tokenizer):
    def next_logits(ids_BT, mask_BS, positions_BT, cache):
        raise AssertionError("no forward is needed")

    assert generate(next_logits, [], 5, TokenIds(4, 0, (3,)), device=CPU) == []


class CountingPeers:
    """The other peer has `groups` groups of work and ends after `steps` steps of each."""

    rank, world = 0, 2

    def __init__(self, groups, steps):
        self.groups, self.steps, self.step = groups, steps, 0

    def max(self, value):
        return max(value, self.groups)

    def any(self, flag):
        self.step += 1
        return flag or self.step % self.steps != 0


def test_an_idle_peer_runs_as_many_forwards_as_the_busy_one():
    calls = []

    def next_logits(ids_BT, mask_BS, positions_BT, cache):
        calls.append(tuple(ids_BT.shape))
        return torch.eye(4)[[1] * len(ids_BT)]

    assert generate(next_logits, [], 9, TokenIds(4, 0, (3,)), device=CPU, peers=CountingPeers(2, 3)) == []
    assert calls == [(1, 1)] * 6


def test_token_ids_take_every_end_token_that_is_named(tokenizer):
    model = fresh_model(TINY_LLAMA, tokenizer, 0)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 7]
    assert TokenIds.of(tokenizer, model.generation_config).eos_ids == (tokenizer.eos_token_id, 7)
    assert TokenIds.of(tokenizer).num_tokens == len(tokenizer)
