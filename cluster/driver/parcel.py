"""What travels between student and teacher as plain numpy arrays, which Ray's object store holds as they are.

Tensors become arrays of the same bytes (bfloat16, which numpy lacks, as int16); token lists become one flat array and
their lengths. Only the two ends open a parcel: between them its reference travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from trainer.answers import TopkAnswer

Arrays = dict[str, Any]
Content = TypeVar("Content")
_AS_BITS = {torch.bfloat16: torch.int16}


def pack(content: Any) -> Arrays:
    """A dataclass of tensors and of tensors by name (`Batch`, `Targets`, `Head`); other fields go as they are."""
    return {field.name: _pack_value(getattr(content, field.name)) for field in fields(content)}


def unpack(kind: type[Content], arrays: Mapping[str, Any]) -> Content:
    """The other end of `pack`; the tensors are copies, so nothing of the object store stays held."""
    return kind(**{name: _unpack_value(value) for name, value in arrays.items()})


def pack_tokens(sequences: Sequence[Sequence[int]]) -> Arrays:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    flat = np.fromiter((token for sequence in sequences for token in sequence), dtype=np.int32, count=lengths.sum())
    return {"ids": flat, "lengths": lengths}


def unpack_tokens(arrays: Mapping[str, Any]) -> list[list[int]]:
    ends = np.cumsum(arrays["lengths"])
    return [arrays["ids"][end - length : end].tolist() for end, length in zip(ends, arrays["lengths"], strict=True)]


def _pack_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _pack_value(one) for name, one in value.items()}
    if isinstance(value, TopkAnswer):
        return ("topk", pack(value))
    if not isinstance(value, Tensor):
        return value
    plain = value.detach().cpu().contiguous()
    bits = _AS_BITS.get(plain.dtype)
    name = str(plain.dtype).removeprefix("torch.")
    return (name, plain.view(bits).numpy() if bits else plain.numpy())


def _unpack_value(value: Any) -> Any:
    match value:
        case (str(name), np.ndarray() as array):
            return torch.from_numpy(array.copy()).view(getattr(torch, name))
        case ("topk", dict() as arrays):
            return unpack(TopkAnswer, arrays)
        case dict():
            return {name: _unpack_value(one) for name, one in value.items()}
        case _:
            return value
