"""Is a directory a model that may enter the registry? Decided from names and headers, before any tensor is read (I5).

What `save_pretrained` writes for a model and its tokenizer, with weights as safetensors. No code of a model is ever
run, nothing is unpickled, so files that only such loading could use are refused instead of being carried along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.errors import InvalidInput, Violation
from cluster.model_files import UnsafeFile, names_in, open_plain, read_object
from trainer.publishing import MANIFEST

_READ_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model", ".md")
_TEXTS = ("LICENSE", "NOTICE", "README", "USE_POLICY")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".h5", ".joblib")
_MOST_HEADER_BYTES = 32 * 1024 * 1024
_INDEX = "model.safetensors.index.json"


def check_model(root: Path) -> list[str]:
    """Names of the files of a model; InvalidInput / MODEL_INVALID or UNSAFE_MODEL_FILE says what is wrong with which.

    Hidden files and directories (.git, .cache) are left out.
    """
    _check_config(root)  # first of all: of a directory that is no model, nobody is told what lies in it
    names = [name for name in names_in(root) if not any(part.startswith(".") for part in name.split("/"))]
    for name in names:
        _check_name(name)
    if not any(name in names for name in _TOKENIZERS):
        raise _invalid(_TOKENIZERS[0], "is missing, as is any other tokenizer; save the tokenizer beside the model")
    _check_weights(root, names)
    return [name for name in names if name != MANIFEST]


def _check_config(root: Path) -> None:
    try:
        config = read_object(root, "config.json")
    except FileNotFoundError as error:
        words = "is missing; a model directory is what transformers' save_pretrained writes"
        raise _invalid("config.json", words) from error
    if not isinstance(config.get("model_type"), str):
        raise _invalid("config.json", "has no model_type, so nobody knows what to load")


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if not name.isprintable():
        raise UnsafeFile(name, "has a name that cannot be written; rename it")
    if path.suffix in _PICKLED:
        raise UnsafeFile(name, "may hold pickled objects, which are never loaded; keep safetensors alone, remove it")
    if path.suffix == ".py":
        raise UnsafeFile(name, "is code, which is never run for a model (no trust_remote_code); remove it")
    if path.suffix not in _READ_SUFFIXES and path.stem not in _TEXTS:
        raise UnsafeFile(name, f"is none of the files that a model is loaded from ({', '.join(_READ_SUFFIXES)})")


def _check_weights(root: Path, names: Sequence[str]) -> None:
    shards = [name for name in names if name.endswith(".safetensors")]
    if not shards:
        raise _invalid("model.safetensors", "is missing; save the model with safe_serialization=True")
    if _INDEX not in names:
        return
    weight_map = read_object(root, _INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise _invalid(_INDEX, "has no weight_map")
    for name in sorted({str(shard) for shard in weight_map.values()}):
        if name not in shards:
            raise _invalid(name[:200], f"is missing; {_INDEX} names it")


def count_parameters(root: Path, names: Sequence[str]) -> int:
    """From the headers of the weights; InvalidInput / MODEL_INVALID for a file that is cut off or no safetensors."""
    return sum(_parameters_in(root, name) for name in names if name.endswith(".safetensors"))


def _parameters_in(root: Path, name: str) -> int:
    with closing(open_plain(root, name)) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
            raise _invalid(name, "is no safetensors file, or cut off")
        try:
            header = json.loads(file.read(length))
            tensors = {key: tensor for key, tensor in header.items() if key != "__metadata__"}
            ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
            counts = [_count(tensor) for tensor in tensors.values()]
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise _invalid(name, "has a header that cannot be read") from error
    if max(ends, default=0) != size - 8 - length:
        raise _invalid(name, f"is not as long as its header says: it was cut off or is still being written ({size} B)")
    return sum(counts)


def _count(tensor: Mapping[str, Any]) -> int:
    """Elements of a tensor; ValueError for more than its bytes can hold, four bits to each."""
    shape, (begin, end) = tensor["shape"], tensor["data_offsets"]
    if not all(isinstance(each, int) and each >= 0 for each in (*shape, begin, end)):
        raise ValueError("no shape")
    count = int(math.prod(shape))
    if count > 2 * (end - begin):
        raise ValueError("larger than its bytes")
    return count


def _invalid(name: str, words: str) -> InvalidInput:
    return InvalidInput("MODEL_INVALID", f"{name} {words}", [Violation("path", f"{name} {words}")])
