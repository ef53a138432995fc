"""A verified model directory becomes an engine: safetensors only, no code of the model, nothing from the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from serving.batching.engine import TransformersEngine
from serving.batching.policy import Limits
from serving.engine import Engine, Observer, PoolingEngine, Task
from serving.errors import ModelDirectoryError
from serving.prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from serving.model_dir import ModelDirectory


@dataclass(frozen=True)
class LoadedModel:
    """All that answering needs: `engine` where the model continues text, `pooling` where it classifies or embeds."""

    tasks: frozenset[Task]
    prompts: Prompts
    engine: Engine | None = None
    pooling: PoolingEngine | None = None


def load(directory: ModelDirectory, *, observer: Observer | None = None, limits: Limits | None = None) -> LoadedModel:
    """Load a model, on a GPU if one is visible, in the data type it was saved in."""
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory.path, local_files_only=True, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            directory.path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="auto",
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelDirectoryError(f"{directory.path} cannot be loaded: {error}") from error
    if missing := report["missing_keys"]:
        raise ModelDirectoryError(f"{directory.path} has no weights for {', '.join(sorted(missing)[:3])}")
    return over(
        model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, observer=observer, limits=limits
    )


def over(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    observer: Observer | None = None,
    limits: Limits | None = None,
) -> LoadedModel:
    """An engine over a model and tokenizer that are loaded."""
    vocab_size = model.get_input_embeddings().num_embeddings
    prompts = Prompts(tokenizer, vocab_size=vocab_size)
    engine = TransformersEngine(
        model,
        prompts.decode,
        context_length=_context_length(model, tokenizer),
        num_tokens=max(tokenizer.get_vocab().values()) + 1,
        end_ids=_end_ids(model, tokenizer),
        limits=limits,
        observer=observer,
    )
    return LoadedModel(frozenset({"generate"}), prompts, engine)


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    limits = (getattr(model.config.get_text_config(), "max_position_embeddings", None), tokenizer.model_max_length)
    return int(min(limit for limit in limits if limit is not None))


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those `model.generate` would stop at."""
    declared = model.generation_config.eos_token_id
    named = declared if isinstance(declared, list) else [declared]
    return frozenset(one for one in (tokenizer.eos_token_id, *named) if one is not None)
