"""Which device this process computes on, and DeepSpeed imported for that device, quietly.

DeepSpeed chooses its accelerator once, at its first import, which transformers may do on its own: so the environment
is set when this module is imported, and `models` imports it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import warnings
from functools import cache
from types import ModuleType

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "WARNING")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt."""
_MOST_KEPT_BYTES, _LARGE_BYTES = 32 << 20, 1 << 20
"""The largest block that glibc agrees to keep, and the smallest one that is worth giving back."""


def compute_device() -> torch.device:
    """The process' GPU (`LOCAL_RANK` among the visible ones), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank if local_rank < torch.cuda.device_count() else 0)


@cache
def keep_freed_memory() -> bool:
    """Keeps what tensors on the CPU give back for the next ones of this process; False where that cannot be asked for.

    glibc would return each freed block of some MiB to the system, and the next tensor would be faulted in page by page:
    the loss took 3 to 5 times as long by that, measured beside other work.
    """
    if torch.cuda.is_available() or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _MOST_KEPT_BYTES) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def trim_memory() -> None:
    """Gives back once what starting has left: imports, files that were read, weights in another precision."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory() -> None:
    """The opposite, for a shard: large buffers go back to the system as soon as they are freed (I7).

    glibc keeps aligned buffers that come and go in holes that it seldom fills again: a shard came to hold twice its
    share of the weights.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)


def import_deepspeed() -> ModuleType:
    """DeepSpeed for `compute_device()`, logging warnings and worse only."""
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops
    from deepspeed.runtime import bf16_optimizer

    # None of DeepSpeed's own kernels is used; otherwise it would compile one at the first start of every installation.
    deepspeed.ops.__compatible_ops__ = {}
    bf16_optimizer.see_memory_usage = lambda *_args, **_kwargs: None  # printed a page whenever an optimizer is made
    # DeepSpeed's own calls, one warning for each
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    module: ModuleType = deepspeed
    return module


def open_lone_group() -> None:
    """A process group of this process alone, if there is none yet: DeepSpeed wants one even for one worker."""
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
