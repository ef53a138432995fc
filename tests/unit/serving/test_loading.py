"""A loaded model ends its answers, and chooses its tokens, as its tokenizer says."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.engine import GenerationRequest, Sampling
from serving.loading import over

GREEDY = Sampling(temperature=0)


@pytest.fixture
def tokenizer(chat_model_dir):
    return AutoTokenizer.from_pretrained(chat_model_dir)


@pytest.fixture
def model(chat_model_dir):
    """One's own copy, to be altered."""
    return AutoModelForCausalLM.from_pretrained(chat_model_dir).eval()


async def answer(model, tokenizer, prompt, sampling=GREEDY):
    """(text, tokens that were counted, why it ended)."""
    engine = over(model, tokenizer).engine
    deltas = [delta async for delta in engine.submit(GenerationRequest(tuple(prompt), 24, sampling))]
    engine.close()
    text = "".join(delta.text for delta in deltas)
    return text, sum(delta.num_tokens for delta in deltas), deltas[-1].finish_reason


async def test_the_tokenizers_end_and_the_declared_ones_all_stop_an_answer(model, tokenizer):
    prompt = [9, 30, 31]
    first = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    second = tokenizer.convert_tokens_to_ids("<|system|>")
    model.generation_config.eos_token_id = [second]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    assert await answer(model, tokenizer, prompt) == ("", 1, "stop")
    model.generation_config.eos_token_id = [second, first]
    tokenizer.eos_token = "<|system|>"
    assert await answer(model, tokenizer, prompt) == ("", 1, "stop")


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=5)])
async def test_padded_rows_of_the_head_are_never_chosen(model, tokenizer, sampling):
    expected = await answer(model, tokenizer, [9, 30, 31], sampling)
    tokens, forward = len(tokenizer), model.forward

    def padded(**kwargs):
        """A head of 8 more rows, all of which are more likely than any token."""
        output = forward(**kwargs)
        best = output.logits.amax(-1, keepdim=True) + 10
        output.logits = torch.cat([output.logits, best.expand(*best.shape[:-1], 8)], dim=-1)
        assert output.logits.shape[-1] == tokens + 8
        return output

    model.forward = padded
    assert await answer(model, tokenizer, [9, 30, 31], sampling) == expected
