"""A teacher's share of its weights, read as slices of the safetensors files: no process holds the whole model (I7).

transformers builds the model and decides which tensor of the files becomes which parameter, but is given carriers: one
stored element each, expanded to the shape in the file. Parameters that are still carriers afterwards are parted by
DeepSpeed and filled from the files. Where anything else was made of a carrier (fused, split, cast), the model is loaded
whole, and the reason is given back. Answering questions is the affair of `teacher`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from trainer.device import compute_device, import_deepspeed, return_freed_memory
from trainer.models import load_model
from trainer.peers import Peers

BLOCK_ELEMENTS = 1 << 22
"""Elements that are read at once: the buffer beside the shard, 16 MiB of float32."""
_FLOATS = {"F64", "F32", "F16", "BF16"}
_OTHERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_OTHERS["BOOL"] = torch.bool

Box = tuple[int | slice, ...]
"""An index of a tensor whose elements are neighbours when the tensor is flattened."""


class _NotSliceable(Exception):
    """The files and the model do not match one to one; says in words why."""


def load_sharded(source: str, dtype: torch.dtype, peers: Peers) -> tuple[PreTrainedModel, str | None]:
    """The model in eval mode, parted over the default process group; collective.

    With a reason, every process has the whole model, for `deepspeed.initialize` to part; errors as `load_model`.
    """
    return_freed_memory()
    files, model, reason = carried(source, dtype, peers)
    if not peers.any(model is None) and model is not None:
        return _parted(model, files), None
    del model
    return load_model(source, dtype), reason or "another shard cannot be read by slices"


def stage3(model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's settings for a model that is only read: about two layers are whole at a time.

    While one layer computes, the next is on its way; what was used is dropped at once, though it comes again (a tied
    embedding). Vectors stay whole: fetching them costs more than they weigh.
    """
    layer = layer_elements(model)
    vectors = [parameter for parameter in model.parameters() if _is_vector(parameter)]
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": None,
        "zero_optimization": {
            "stage": 3,
            "stage3_prefetch_bucket_size": layer,
            "stage3_max_live_parameters": 2 * layer,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": max((_numel(one) for one in vectors), default=0),
            "stage3_allgather_sequential": True,  # else they are gathered into one buffer, and copied out of it
            "memory_efficient_linear": False,  # it replaces torch's own for good, and rounds biases in another way
        },
    }


@contextmanager
def held_whole(*tensors: Tensor | None) -> Iterator[None]:
    """Collective where they are parted: whole until the block ends, for modules that use them too."""
    parted: list[Any] = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    with import_deepspeed().zero.GatheredParameters(parted) if parted else nullcontext():
        before = [tensor.is_external_param for tensor in parted]
        for tensor in parted:
            tensor.is_external_param = True  # all others are dropped as soon as the module is done that has them
        try:
            yield
        finally:
            for tensor, was in zip(parted, before, strict=True):
                tensor.is_external_param = was


def layer_elements(model: nn.Module) -> int:
    """Parameters of the largest layer, a layer being one of a list of modules."""
    layers = [layer for module in model.modules() if isinstance(module, nn.ModuleList) for layer in module]
    return max((sum(_numel(one) for one in layer.parameters()) for layer in layers), default=0)


def boxes(shape: Sequence[int], start: int, end: int, most: int = BLOCK_ELEMENTS) -> Iterator[Box]:
    """Boxes of at most `most` elements that are, one after the other, the elements start..end of the flat tensor."""
    if start < end and not shape:
        yield ()
    row = math.prod(shape[1:])
    while shape and start < end:
        index, within = divmod(start, row)
        whole_rows = 0 if within else min(end - start, most) // row
        if whole_rows:
            yield (slice(index, index + whole_rows),)
            start += whole_rows * row
        else:
            stop = min(row, within + end - start)
            yield from ((index, *box) for box in boxes(shape[1:], within, stop, most))
            start += stop - within


def share(numel: int, rank: int, world: int) -> tuple[int, int]:
    """The flat range [start, end) of one process, as DeepSpeed parts: equal shares, the last ones short or empty."""
    size = math.ceil(numel / world)
    return min(rank * size, numel), min((rank + 1) * size, numel)


@dataclass(frozen=True)
class FileTensor:
    """One tensor of a safetensors file."""

    path: str
    name: str
    shape: tuple[int, ...]

    def read(self, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """The share of one process, flat, block by block; each is to be used before the next is asked for.

        The file is mapped for this tensor alone: what was read of it stays in the process' memory until it is closed.
        """
        with safe_open(self.path, framework="pt") as file:
            behind = file.get_slice(self.name)
            for box in boxes(self.shape, *share(math.prod(self.shape), rank, world)):
                yield behind[box].flatten()


@dataclass
class Files:
    """The files of one model: which tensor stands behind which carrier."""

    dtype: torch.dtype
    tensors: dict[int, FileTensor] = field(default_factory=dict)
    """By the address of the carrier's one element."""
    elements: list[Tensor] = field(default_factory=list)
    """Kept, so that no other tensor comes to lie at their addresses."""

    def carriers(self, source: str) -> dict[str, Tensor]:
        """One for every tensor of the files, in the dtype that it will have."""
        found: dict[str, Tensor] = {}
        for path in _paths(source):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    tensor = file.get_slice(name)
                    element = torch.zeros((), dtype=self._dtype_of(name, tensor.get_dtype()))
                    found[name] = element.expand(tensor.get_shape())
                    self.tensors[element.data_ptr()] = FileTensor(path, name, tuple(tensor.get_shape()))
                    self.elements.append(element)
        return found

    def behind(self, tensor: Tensor) -> FileTensor | None:
        """What a carrier stands for; None if this is no carrier."""
        return self.tensors.get(tensor.data_ptr())

    def _dtype_of(self, name: str, written: str) -> torch.dtype:
        if written in _FLOATS:
            return self.dtype
        if written not in _OTHERS:
            raise _NotSliceable(f"{name} is written as {written}")
        return _OTHERS[written]


def carried(source: str, dtype: torch.dtype, peers: Peers) -> tuple[Files, PreTrainedModel | None, str | None]:
    """The model as transformers builds it of carriers, or why it cannot be filled by slices of the files."""
    files = Files(dtype)
    try:
        model = load_model(source, dtype, lambda: files.carriers(source))
        _check_carried(model, files)
        _check_tied(model, files, peers)
    except _NotSliceable as reason:
        return files, None, str(reason)
    return files, model, None


def _paths(source: str) -> list[str]:
    """The safetensors of a directory or hub id."""
    single = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return [str(single)]
    index = json.loads(Path(cached_file(source, SAFE_WEIGHTS_INDEX_NAME)).read_text())
    return [str(cached_file(source, name)) for name in sorted(set(index["weight_map"].values()))]


def _check_carried(model: PreTrainedModel, files: Files) -> None:
    for name, tensor in model.state_dict(keep_vars=True).items():
        if files.behind(tensor) is None:
            raise _NotSliceable(f"{name} is not one tensor of the files, as it lies there")
        if isinstance(tensor, nn.Parameter) and tensor.dtype != files.dtype:
            raise _NotSliceable(f"{name} is kept in {tensor.dtype}")


def _check_tied(model: PreTrainedModel, files: Files, peers: Peers) -> None:
    """A file may hold both ends of a tie; carriers look alike, so it is seen here whether what they stand for is."""
    uses = Counter(parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False))
    used = {tensor.data_ptr() for tensor in model.state_dict().values()}
    unused = [tensor for address, tensor in files.tensors.items() if address not in used]
    for tied in (files.tensors[address] for address, count in uses.items() if count > 1):
        for other in (tensor for tensor in unused if tensor.shape == tied.shape):
            blocks = zip(tied.read(peers.rank, peers.world), other.read(peers.rank, peers.world), strict=True)
            if not all(torch.equal(mine, its) for mine, its in blocks):
                raise _NotSliceable("its config ties two tensors of the files that differ")


@torch.no_grad()
def _parted(model: PreTrainedModel, files: Files) -> PreTrainedModel:
    """All shares lie in one block of memory: among what comes and goes with every layer they would leave holes."""
    zero = import_deepspeed().zero.Init(config_dict_or_path=stage3(model, files.dtype), dtype=files.dtype)
    parameters = list(model.parameters())
    sizes = [math.ceil(parameter.numel() / zero.dp_world_size) for parameter in parameters]
    block = torch.zeros(sum(sizes), dtype=files.dtype, device=compute_device())
    for parameter, share_S in zip(parameters, torch.split(block, sizes), strict=True):
        behind = files.behind(parameter)
        assert behind is not None
        _part(parameter, share_S, zero)
        _fill(share_S, behind.read(zero.rank, zero.dp_world_size))
    for buffer in model.buffers():
        behind = files.behind(buffer)
        if behind is not None:
            buffer.data = torch.cat([part.clone() for part in behind.read()]).reshape(buffer.shape).to(buffer.dtype)
        buffer.data = buffer.data.to(compute_device())
    return model


def _part(parameter: nn.Parameter, share_S: Tensor, zero: Any) -> None:
    """Makes a carrier a parameter of ZeRO stage 3 whose share lies in `share_S`.

    The whole is allocated for a moment and never written, so that it takes no memory of a CPU.
    """
    parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype, device=share_S.device)
    zero._convert_to_deepspeed_param(parameter)
    parameter.partition()  # type: ignore[attr-defined]
    parameter.ds_tensor.data = share_S  # type: ignore[attr-defined]


def _fill(share_S: Tensor, blocks: Iterable[Tensor]) -> None:
    """What is beyond the last block stays as it is: shares are padded to one size."""
    filled = 0
    for block in blocks:
        share_S[filled : filled + block.numel()].copy_(block)
        filled += block.numel()


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _is_vector(parameter: nn.Parameter) -> bool:
    return len(getattr(parameter, "ds_shape", parameter.shape)) <= 1
