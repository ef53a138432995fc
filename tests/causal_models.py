"""Causal models of several architectures, tiny and random: made in a moment, and no two tokens are equally likely."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 97
END_ID = 1
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": END_ID,
    "pad_token_id": 0,
}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_ENDS = {"bos_token_id": 0, "eos_token_id": END_ID, "pad_token_id": 0}
_SETTINGS = {
    "Llama": _GROUPED,
    "Qwen2": _GROUPED,
    "Qwen3": {**_GROUPED, "head_dim": 16},
    "GPT2": {**_GPT2, **_ENDS},
    "Mistral": {**_GROUPED, "sliding_window": 7},
    "Gemma2": {**_GROUPED, "head_dim": 16, "sliding_window": 7, "attn_logit_softcapping": 5.0},
    "Gemma3": {**_GROUPED, "head_dim": 16, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_ENDS},
    "Mamba": {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, **_ENDS},
}
PACKED = ("Llama", "Qwen2", "Qwen3", "GPT2", "Mistral", "Gemma2", "Gemma3")
SEPARATE = ("Bloom", "Mamba")
_CONFIGS = {"Gemma3": "Gemma3TextConfig"}
_MODELS = {"GPT2": "GPT2LMHeadModel"}


def make(name: str, **changes: object) -> PreTrainedModel:
    """The same weights every time; spread wide, so that answers do not repeat themselves."""
    config = getattr(transformers, _CONFIGS.get(name, f"{name}Config"))(**{**_SETTINGS[name], **changes})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, _MODELS.get(name, f"{name}ForCausalLM"))(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def generated(model: PreTrainedModel, prompt: Sequence[int], max_tokens: int, end_id: int = END_ID) -> list[int]:
    """What `model.generate` adds to one prompt, the end token included."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=end_id,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()
