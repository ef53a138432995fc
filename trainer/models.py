"""Models in and out: load what exists, make what is fresh, split off the head, write what others can load.

Only safetensors are read (nothing is unpickled, I5) and no code of a model is trusted. Everything written here loads
with plain `transformers`. Optimisation and sharding are elsewhere.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

import trainer.device  # noqa: F401  (before transformers imports DeepSpeed)
from trainer import atomic
from trainer.batch import NOT_LEARNED, Batch, Sample, collate
from trainer.errors import UserError
from trainer.head import Head
from trainer.hub import unreadable
from trainer.storage import writing

transformers_logging.disable_progress_bar()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "fp32": torch.float32, "bf16": torch.bfloat16}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PROBE_TOKENS = 8
_OLDER_SETTINGS = {"rope_theta", "rope_scaling"}
"""Names that transformers still takes and turns into newer ones."""
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
_MULTIPLIED_BY_SCALING = {"hyperclovax"}
"""Families whose `logits_scaling` multiplies; Granite's divides."""
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class Parts:
    """A causal language model as its body (token ids to final hidden states) and its head."""

    body: nn.Module
    head: Head


def load_model(
    source: str, dtype: torch.dtype, tensors: Callable[[], Mapping[str, Tensor]] | None = None
) -> PreTrainedModel:
    """A directory or hub id, in eval mode on the CPU; UserError if it is not there, not safe, or not whole.

    `tensors`, by the names in the files, stand for those of the files.
    """
    if Path(source).is_dir():
        _check_directory(Path(source))
    try:
        read = functools.partial(AutoModelForCausalLM.from_pretrained, source, trust_remote_code=False)
        model, info = (read if tensors is None else _without_files(source, tensors()))(
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except (StrictDataclassError, OSError, ValueError, KeyError, SafetensorError) as error:
        raise unreadable(source, "MODEL_INVALID", "cannot be loaded as a causal language model", error) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        names = sorted(info["missing_keys"]) or sorted(str(key) for key in info["mismatched_keys"])
        raise UserError("MODEL_INVALID", f"{source}: weights are missing or of another shape: {', '.join(names[:5])}")
    whole: PreTrainedModel = model.eval()
    return whole


def _without_files(source: str, tensors: Mapping[str, Tensor]) -> Callable[..., Any]:
    """Reads all of a model but its weights; gives what makes the model of `tensors`."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    try:
        generation_config = GenerationConfig.from_pretrained(source)
    except OSError:
        generation_config = None  # there is none: transformers makes it of the config
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return functools.partial(
        type(skeleton).from_pretrained,
        None,
        config=skeleton.config,
        generation_config=generation_config,
        state_dict=dict(tensors),
    )


def fresh_model(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Random float32 weights, a pure function of (config, seed); vocabulary and token ids are the tokenizer's."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    settings = {key: value for key, value in config.items() if key != "model_type"}
    _check_settings(str(config["model_type"]), settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            whole = AutoConfig.for_model(config["model_type"], **{**settings, "vocab_size": len(tokenizer), **ids})
            model: PreTrainedModel = AutoModelForCausalLM.from_config(whole, dtype=torch.float32)
        except (StrictDataclassError, ValueError, TypeError, KeyError, ArithmeticError, RuntimeError) as error:
            raise UserError("MODEL_INVALID", f"no model can be made of this config: {error}") from error
    return model


def split(model: PreTrainedModel) -> Parts:
    """The body gives hidden states after the final norm; the head is the output embedding's own tensors."""
    body = getattr(model, str(model.base_model_prefix), None)
    output = model.get_output_embeddings()
    if not isinstance(body, nn.Module) or body is model or not isinstance(output, nn.Linear):
        raise UserError("MODEL_UNSUPPORTED", f"{type(model).__name__} has no body and linear head to tell apart")
    return Parts(body, Head(output.weight, output.bias, *_transforms(model.config.get_text_config())))


def _transforms(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Scale and soft cap of the logits, by the names that families give them; probes tell whether that is all."""
    scale = math.prod(getattr(config, name, None) or 1.0 for name in _MULTIPLIERS)
    scaling = getattr(config, "logits_scaling", None) or 1.0
    scale = scale * scaling if config.model_type in _MULTIPLIED_BY_SCALING else scale / scaling
    return scale, next((cap for name in _SOFT_CAPS if (cap := getattr(config, name, None))), None)


def head_tolerance(dtype: torch.dtype) -> float:
    """What rounding may change in a logit, as a share of the largest one."""
    return 1e-4 if dtype == torch.float32 else 3e-2


def head_error(ours_NV: Tensor, theirs_NV: Tensor) -> float:
    """How far the head's logits are from the model's own, as a share of the largest one."""
    if not theirs_NV.numel():
        return 0.0
    apart, largest = (ours_NV.float() - theirs_NV.float()).abs().max(), theirs_NV.float().abs().max()
    return float(apart / largest.clamp_min(torch.finfo(torch.float32).tiny))


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether its logits are `head(hidden states)`, with the transforms that `Head` knows."""
    was_training = model.training
    model.eval()
    parts = split(model)
    weight_VD = parts.head.weight_VD
    ids_BT = torch.linspace(0, len(weight_VD) - 1, _PROBE_TOKENS, device=weight_VD.device).long()[None]
    hidden_TD = parts.body(input_ids=ids_BT, use_cache=False).last_hidden_state[0]
    error = head_error(parts.head.logits_RV(hidden_TD), model(input_ids=ids_BT, use_cache=False).logits[0])
    model.train(was_training)
    return error <= head_tolerance(weight_VD.dtype)


def check_head(model: PreTrainedModel, source: str) -> None:
    """UserError for a student whose logits are made in a way that its loss would not know."""
    if not has_plain_head(model):
        raise UserError("MODEL_UNSUPPORTED", f"{source}: its logits are not its output embedding times hidden states")


def check_rows(model: PreTrainedModel, num_tokens: int, source: str) -> None:
    """UserError TOKENIZER_MISMATCH if the tokenizer has tokens of which the model knows nothing."""
    rows = min(_rows(split(model).head.weight_VD), _rows(model.get_input_embeddings().weight))
    if rows < num_tokens:
        mend = "resize its embeddings (resize_token_embeddings), or take the tokenizer that it came with"
        message = f"{source} has {rows} rows of vocabulary for a tokenizer of {num_tokens} entries; {mend}"
        raise UserError("TOKENIZER_MISMATCH", message)


def max_positions(source: str) -> int | None:
    """How long the texts may be that a model knows; None where its family sets no bound."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (StrictDataclassError, OSError, ValueError, KeyError) as error:
        raise unreadable(source, "MODEL_INVALID", "has no config that transformers knows", error) from error
    return positions_of(config)


def positions_of(config: PreTrainedConfig) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_length(positions: int | None, max_length: int, source: str) -> None:
    """UserError MAX_LENGTH if samples may be longer than the model's positions."""
    if positions is not None and max_length > positions:
        mend = f"set data.max_length to {positions} or less, or take a model of more positions"
        raise UserError(
            "MAX_LENGTH", f"data.max_length is {max_length}, but {source} has {positions} positions; {mend}"
        )


@torch.no_grad()
def keeps_samples_apart(model: PreTrainedModel, forward: Callable[[Batch], Tensor] | None = None) -> bool:
    """Whether samples packed into one row give what they give alone; families that take no positions mix them up.

    A sharded model is asked through `forward`, which gives what `hidden_at_rows` gives; collective.
    """
    forward = forward or functools.partial(hidden_at_rows, model)
    was_training = model.training
    model.eval()
    try:
        alone_ND, packed_ND = (forward(batch).float() for batch in _packing_probe(model))
    except (TypeError, ValueError):
        return False  # it takes no positions at all
    finally:
        model.train(was_training)
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    return float((packed_ND - alone_ND).norm()) <= tolerance * float(alone_ND.norm())


def packing_refused(model: PreTrainedModel, source: str) -> UserError:
    words = f"{source} ({model.config.model_type}) mixes up samples that are packed into one row"
    return UserError("MODEL_UNSUPPORTED", f"{words}; set data.packing_strategy: none")


def _packing_probe(model: PreTrainedModel) -> tuple[Batch, Batch]:
    """Two short random samples, the second of which is learned: each in a row of its own, and both in one."""
    weight_VD = model.get_input_embeddings().weight
    ids = torch.randint(_rows(weight_VD), (2, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    first = Sample(sample_id=0, input_ids=ids[0], labels=[NOT_LEARNED] * _PROBE_TOKENS)
    samples = [first, Sample(sample_id=1, input_ids=ids[1], labels=ids[1])]
    alone, packed = (collate(rows, samples, 0).to(weight_VD.device) for rows in ([(0,), (1,)], [(0, 1)]))
    return alone, packed


def _rows(weight_VD: Tensor) -> int:
    """Of the whole matrix, also where this process has only a share of it."""
    return int(getattr(weight_VD, "ds_shape", weight_VD.shape)[0])


def hidden_at_rows(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N, D]: the final hidden states at the learned positions of a batch.

    A row of one sample needs no mask: it is padded on the right, so causality alone keeps padding out. For packed rows
    transformers keeps samples apart by positions that start again at 0, in sliding-window layers too.
    """
    positions_BT = batch.position_ids_BT if batch.is_packed() else None
    body = getattr(model, str(model.base_model_prefix))
    hidden_BTD: Tensor = body(input_ids=batch.input_ids_BT, position_ids=positions_BT, use_cache=False)[0]
    return hidden_BTD.flatten(0, 1)[batch.rows_N]


def logits_at_rows(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[N, V]: the model's own logits at the learned positions, whatever lies between its states and them."""
    positions_BT = batch.position_ids_BT if batch.is_packed() else None
    logits_BTV: Tensor = model(input_ids=batch.input_ids_BT, position_ids=positions_BT, use_cache=False).logits
    return logits_BTV.flatten(0, 1)[batch.rows_N]


def checkpoint_activations(model: PreTrainedModel, source: str) -> None:
    """Inside layers nothing is kept for the backward; they are computed again, with the same random numbers."""
    if not model.supports_gradient_checkpointing:
        words = f"{source} ({model.config.model_type}) cannot compute its activations again"
        raise UserError("MODEL_UNSUPPORTED", f"{words}; set training.gradient_checkpointing: false")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def write_model(
    directory: Path, like: PreTrainedModel, weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """A Hugging Face directory of whole weights (names as in the model `like`), replaced atomically. StorageError."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(like.config)
    _name_ends(model, like, tokenizer)
    loaded = model.load_state_dict(dict(weights), assign=True, strict=False)
    model.tie_weights()
    assert not loaded.unexpected_keys, loaded.unexpected_keys
    assert not any(parameter.is_meta for parameter in model.parameters()), loaded.missing_keys
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.config.dtype = next(model.parameters()).dtype
    with writing(directory, temporary):
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        atomic.replace_directory(temporary, directory)


def _name_ends(model: PreTrainedModel, like: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Answers end where the tokenizer says, which is what was learned; what ended those of `like` stays beside."""
    known = (tokenizer.eos_token_id, *_ids(like.generation_config), *_ids(like.config))
    ends = list(dict.fromkeys(one for one in known if one is not None))
    model.generation_config = copy.deepcopy(like.generation_config)
    model.config = copy.deepcopy(like.config)
    for config in (model.config, model.generation_config):
        config.eos_token_id = ends[0] if len(ends) == 1 else ends
        config.pad_token_id = tokenizer.pad_token_id


def _ids(config: Any) -> list[int | None]:
    named = getattr(config, "eos_token_id", None)
    return named if isinstance(named, list) else [named]


def _check_directory(directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise UserError("MODEL_INVALID", f"{directory} has no config.json: it is not a model directory")
    try:
        json.loads((directory / "config.json").read_text())
    except ValueError as error:
        raise UserError("MODEL_INVALID", f"{directory}/config.json is not JSON: {error}") from error
    if any(directory.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        mend = "convert them with save_pretrained(..., safe_serialization=True)"
        raise UserError("UNSAFE_MODEL_FILE", f"{directory} has only pickled weights ({pickles[0]}): {mend}")
    raise UserError("MODEL_INVALID", f"{directory} has no .safetensors weights")


def _check_settings(model_type: str, settings: Mapping[str, Any]) -> None:
    """transformers takes unknown settings in silence; here they are errors."""
    try:
        config = AutoConfig.for_model(model_type)
    except (ValueError, KeyError) as error:
        raise UserError("MODEL_INVALID", f"config.model_type: transformers knows no {model_type!r}") from error
    known = set(config.to_dict()) | set(config.attribute_map) | _OLDER_SETTINGS
    for key in settings:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError("MODEL_INVALID", f"config.{key}: {model_type} has no such setting{hint}")
