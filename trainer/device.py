"""Which device this process computes on, and DeepSpeed imported for that device, quietly.

DeepSpeed chooses its accelerator once, at its first import, which transformers may do on its own: so the environment
is set when this module is imported, and `models` imports it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import warnings
from types import ModuleType

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "WARNING")

_M_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def compute_device() -> torch.device:
    """The process' GPU (`LOCAL_RANK` among the visible ones), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank if local_rank < torch.cuda.device_count() else 0)


def import_deepspeed() -> ModuleType:
    """DeepSpeed for `compute_device()`, logging warnings and worse only."""
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    import deepspeed.ops

    # None of DeepSpeed's own kernels is used; otherwise it would compile one at the first start of every installation.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed's own calls, one warning for each
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    module: ModuleType = deepspeed
    return module


def return_freed_memory() -> None:
    """From now on large buffers of this process go back to the system as soon as they are freed.

    glibc keeps aligned buffers that come and go in holes that it seldom fills again: a shard came to hold twice its
    share of the weights.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def open_lone_group() -> None:
    """A process group of this process alone, if there is none yet: DeepSpeed wants one even for one worker."""
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
