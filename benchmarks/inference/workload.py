"""The model and the requests that all sides are given: a Llama of 9 million random weights, prompts and answers of
mixed lengths, and Poisson arrivals. The tokenizer is trained on the project's own text, so that text costs what it
costs; end tokens are never reached, so that every side makes exactly the tokens that were asked for.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

VOCABULARY = 8192
CONTEXT_LENGTH = 1024
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
PROMPT_TOKENS = (16, 160)
ANSWER_TOKENS = (16, 112)


@dataclass(frozen=True)
class Request:
    """What one client asks for."""

    prompt_ids: tuple[int, ...]
    max_tokens: int


def requests(count: int, seed: int = 11) -> list[Request]:
    """The same for every side: lengths even over their range, tokens without meaning."""
    draw = random.Random(seed)
    return [
        Request(
            tuple(draw.randrange(8, VOCABULARY) for _ in range(draw.randint(*PROMPT_TOKENS))),
            draw.randint(*ANSWER_TOKENS),
        )
        for _ in range(count)
    ]


def num_tokens(wanted: Sequence[Request]) -> int:
    """Of all answers."""
    return sum(each.max_tokens for each in wanted)


def arrivals(count: int, per_second: float, seed: int = 5) -> list[float]:
    """Seconds from the start, of a Poisson process."""
    draw, at, times = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(per_second)
        times.append(at)
    return times


def build(root: Path) -> int:
    """Write model and tokenizer; the number of parameters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(_project_text(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=bpe).save_pretrained(root)
    torch.manual_seed(3)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.save_pretrained(root)
    return int(model.num_parameters())


def _project_text() -> list[str]:
    paths = [path for folder in ("docs", "cluster", "trainer", "serving") for path in (ROOT / folder).rglob("*.*")]
    return [path.read_text() for path in sorted(paths) if path.suffix in (".py", ".md")]


def load(root: Path) -> tuple[Any, Any]:
    """Model and tokenizer, as every side but ours loads them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(root).eval(), AutoTokenizer.from_pretrained(root)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    print(json.dumps({"parameters": build(parser.parse_args().root)}))
