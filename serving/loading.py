"""A verified model directory becomes an engine: safetensors only, no code of the model, nothing from the network.

Which engine, its config says: a causal model continues text, one with a head over labels classifies, any other encoder,
and whatever carries the `modules.json` of sentence-transformers, embeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from serving.batching.engine import TransformersEngine
from serving.batching.policy import Limits, lanes
from serving.engine import Engine, Observer, PoolingEngine, Task
from serving.errors import EngineOptionsError, ModelDirectoryError
from serving.options import FRACTIONS, EngineOptions
from serving.pooling import Pooling, PoolingOptions, TransformersPoolingEngine
from serving.prompts import Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from serving.model_dir import ModelDirectory

_SAFE: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_AUTO_CLASS: Mapping[Task, str] = {
    "generate": "AutoModelForCausalLM",
    "classify": "AutoModelForSequenceClassification",
    "embed": "AutoModel",
}
_POOLING_MODES: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class LoadedModel:
    """All that answering needs: `engine` where the model continues text, `pooling` where it classifies or embeds."""

    tasks: frozenset[Task]
    prompts: Prompts
    engine: Engine | None = None
    pooling: PoolingEngine | None = None

    @property
    def is_healthy(self) -> bool:
        return all(each.is_healthy for each in (self.engine, self.pooling) if each is not None)


def load(
    directory: ModelDirectory,
    *,
    observer: Observer | None = None,
    engine: EngineOptions | None = None,
) -> LoadedModel:
    """Load a model, on a GPU if one is visible, in the data type it was saved in.

    `observer` is for causal models in our own engine; vLLM keeps its own. EngineOptionsError for a limit that the
    engine of such a model has not.
    """
    disable_progress_bar()
    task, engine = task_of(directory.path), engine or EngineOptions()
    if engine.name == "vllm":
        return _in_vllm(directory.path, task, engine.limits)
    wanted = _limits_for(task, engine.limits)
    longest = wanted.pop("max_model_len", None)
    tokenizer, model = _read(directory.path, task)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if task == "generate":
        return over(model, tokenizer, observer=observer, limits=_limits(wanted), max_model_len=longest)
    given = _label_options(model) if task == "classify" else _embedding_options(directory.path)
    options = PoolingOptions(**given | wanted, pad_id=_pad_id(model, tokenizer))
    return pooling_over(model, tokenizer, options, max_model_len=longest)


def _limits_for(task: Task, limits: Mapping[str, float]) -> dict[str, Any]:
    """Counts as whole numbers; EngineOptionsError for one that a model of this task has no use for."""
    known = {"max_model_len", *(field.name for field in fields(Limits if task == "generate" else PoolingOptions))}
    for name in limits:
        if name not in known:
            raise EngineOptionsError(f"a model that can {task} has no limit {name!r}; leave it out")
    return {name: value if name in FRACTIONS else int(value) for name, value in limits.items()}


def _limits(wanted: Mapping[str, Any]) -> Limits:
    try:
        return Limits(**wanted)
    except ValueError as error:
        raise EngineOptionsError(str(error)) from error


def over(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    observer: Observer | None = None,
    limits: Limits | None = None,
    max_model_len: int | None = None,
) -> LoadedModel:
    """An engine over a causal model and tokenizer that are loaded; EngineOptionsError."""
    longest = _wished(max_model_len, _context_length(model.config, tokenizer, _first_position(model)))
    if max_model_len is not None:
        _check_room(limits or Limits(), max_model_len)
    end_ids = _end_ids(model.generation_config, tokenizer)
    prompts = Prompts(tokenizer, vocab_size=model.get_input_embeddings().num_embeddings, end_ids=end_ids)
    engine = TransformersEngine(
        model,
        prompts.decode,
        context_length=longest,
        num_tokens=min(max(tokenizer.get_vocab().values()) + 1, _head_size(model)),
        end_ids=end_ids,
        limits=limits,
        observer=observer,
    )
    return LoadedModel(frozenset({"generate"}), prompts, engine)


def pooling_over(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: PoolingOptions,
    *,
    max_model_len: int | None = None,
) -> LoadedModel:
    """An engine over a model that classifies or embeds."""
    prompts = Prompts(tokenizer, vocab_size=model.get_input_embeddings().num_embeddings)
    context_length = _wished(max_model_len, _context_length(model.config, tokenizer, _first_position(model)))
    engine = TransformersPoolingEngine(model, options, context_length=context_length)
    task: Task = "classify" if options.labels else "embed"
    return LoadedModel(frozenset({task}), prompts, pooling=engine)


def _in_vllm(path: Path, task: Task, limits: Mapping[str, float]) -> LoadedModel:
    """The weights are read by vLLM alone."""
    from serving import vllm_engine

    if task != "generate":
        raise ModelDirectoryError(f"{path} holds no causal model; the engine `vllm` is asked for those alone")
    try:
        tokenizer, config = AutoTokenizer.from_pretrained(path, **_SAFE), AutoConfig.from_pretrained(path, **_SAFE)
        declared = GenerationConfig.from_model_config(config)
        if (path / "generation_config.json").is_file():
            declared = GenerationConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelDirectoryError(f"{path} cannot be loaded: {error}") from error
    end_ids = _end_ids(declared, tokenizer)
    prompts = Prompts(tokenizer, vocab_size=config.get_text_config().vocab_size, end_ids=end_ids)
    own = dict(limits)
    longest = own.pop("max_model_len", None)
    engine = vllm_engine.start(
        path,
        prompts.decode,
        end_ids=end_ids,
        context_length=_wished(None if longest is None else int(longest), _context_length(config, tokenizer)),
        limits=own,
    )
    return LoadedModel(frozenset({"generate"}), prompts, engine)


def task_of(path: Path) -> Task:
    """What the model in this directory is for; ModelDirectoryError where it is for nothing that is served."""
    config = _read_json(path / "config.json")
    if config.get("is_encoder_decoder"):
        raise ModelDirectoryError(f"{path} holds an encoder-decoder model; causal models and encoders are served")
    if (path / "modules.json").is_file():
        return "embed"
    names = config.get("architectures") or []
    if any(str(name).endswith("ForSequenceClassification") for name in names):
        return "classify"
    if not names or set(names) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        return "generate"
    return "embed"


def _read(path: Path, task: Task) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **_SAFE)
        model, report = getattr(transformers, _AUTO_CLASS[task]).from_pretrained(
            path, **_SAFE, use_safetensors=True, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelDirectoryError(f"{path} cannot be loaded: {error}") from error
    # The pooler of an encoder is not used: masked language models come without one.
    if missing := [name for name in report["missing_keys"] if task != "embed" or not name.startswith("pooler.")]:
        raise ModelDirectoryError(f"{path} has no weights for {', '.join(sorted(missing)[:3])}")
    return tokenizer, model


def _label_options(model: PreTrainedModel) -> dict[str, Any]:
    """As the model's config names them; with one label, or several that may be true at once, each stands alone."""
    names = model.config.id2label
    labels = tuple(str(names[index]) for index in sorted(names))
    several = model.config.problem_type == "multi_label_classification"
    return {"labels": labels, "exclusive": len(labels) > 1 and not several}


def _embedding_options(path: Path) -> dict[str, Any]:
    """Pooling and normalisation as sentence-transformers writes them down; without that the mean of all tokens."""
    if not (path / "modules.json").is_file():
        return {}
    options: dict[str, Any] = {}
    for module in _read_json(path / "modules.json"):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            options["pooling"] = _pooling(path, str(module.get("path", "")))
        elif kind == "Normalize":
            options["normalized"] = True
        elif kind != "Transformer":
            raise ModelDirectoryError(f"{path / 'modules.json'} asks for a module `{kind}`, which is not supported")
    return options


def _pooling(root: Path, folder: str) -> Pooling:
    path = (root / folder / "config.json").resolve()
    if not path.is_relative_to(root.resolve()):
        raise ModelDirectoryError(f"{folder!r} in modules.json leads out of the model directory {root}")
    config = _read_json(path)
    modes = [mode for name, mode in _POOLING_MODES.items() if config.get(name)]
    others = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or len(others) != 1:
        raise ModelDirectoryError(f"{path} must choose one of {', '.join(_POOLING_MODES)}; it has {others or 'none'}")
    return modes[0]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelDirectoryError(f"{path} cannot be read as JSON: {error}") from error


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The model's own: causal ones with a head over labels look for the last token that is none."""
    if (declared := getattr(model.config, "pad_token_id", None)) is not None:
        return int(declared)
    encoder = model.config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return int(tokenizer.pad_token_id) if encoder and tokenizer.pad_token_id is not None else None


def _context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, first_position: int = 0) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    limits = (None if positions is None else positions - first_position, tokenizer.model_max_length)
    return int(min(limit for limit in limits if limit is not None))


def _wished(wished: int | None, length: int) -> int:
    """The model's own length where none is wished for; EngineOptionsError for more than that."""
    if wished is not None and wished > length:
        raise EngineOptionsError(
            f"max_model_len ({wished}) is more than this model can read ({length}); ask for no more, or leave it out"
        )
    return length if wished is None else wished


def _check_room(limits: Limits, wished: int) -> None:
    """EngineOptionsError where the cache has no room for a request of the length that was wished for."""
    longest = max(lane.longest for lane in lanes(limits, wished))
    if longest < wished:
        raise EngineOptionsError(
            f"max_model_len ({wished}) is more than the {longest} tokens that one request may take: kv_tokens "
            f"({limits.kv_tokens}) less prefix_tokens ({limits.prefix_tokens}), of which long requests have "
            f"long_share ({limits.long_share:g}); give more kv_tokens or long_share, or less max_model_len"
        )


def _first_position(model: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from behind that of padding, so they have fewer than they name."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def _head_size(model: PreTrainedModel) -> int:
    """Tokens that the model can choose; a tokenizer may know more."""
    head = model.get_output_embeddings()
    return int((model.get_input_embeddings() if head is None else head).weight.shape[0])


def _end_ids(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's, and those `model.generate` would stop at."""
    declared = config.eos_token_id
    named = declared if isinstance(declared, list) else [declared]
    return frozenset(one for one in (tokenizer.eos_token_id, *named) if one is not None)
