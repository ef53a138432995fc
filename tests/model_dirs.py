"""Small model directories, made by hand: nothing of torch is needed to write safetensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path

NUM_PARAMETERS = 6


def safetensors_bytes(shape: tuple[int, ...] = (2, 3), name: str = "weight") -> bytes:
    """One float32 tensor of zeros."""
    size = 4
    for each in shape:
        size *= each
    header = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def write_model(root: Path, **files: bytes) -> Path:
    """What `save_pretrained` writes, as far as anybody looks; more files by name, with `__` for the dot."""
    root.mkdir(parents=True, exist_ok=True)
    content = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors_bytes(),
        **{name.replace("__", "."): data for name, data in files.items()},
    }
    for name, data in content.items():
        (root / name).write_bytes(data)
    return root
