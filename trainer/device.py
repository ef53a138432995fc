"""Which device this process computes on, and DeepSpeed imported for that device, quietly.

Every module that needs DeepSpeed asks here, since its accelerator is chosen once, at its first import.
"""

from __future__ import annotations

import logging
import os
from types import ModuleType

import torch


def compute_device() -> torch.device:
    """The process' GPU (`LOCAL_RANK` among the visible ones), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local_rank if local_rank < torch.cuda.device_count() else 0)


def import_deepspeed() -> ModuleType:
    """DeepSpeed for `compute_device()`, logging warnings and worse only."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_LOG_LEVEL", "WARNING")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    module: ModuleType = deepspeed
    return module
