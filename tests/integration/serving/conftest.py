"""One installation for all tests of serving, and the models that they deploy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from installation import Installation, installed

from cluster.ray_head import RayHead


@pytest.fixture(scope="session")
def installation(ray_cluster: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(ray_cluster, tmp_path_factory.mktemp("home")) as found:
        yield found


@dataclass(frozen=True)
class Models:
    """References of what is published."""

    teacher: str
    good: str
    """Says what its teacher says."""
    better: str
    """Almost."""
    garbage: str
    """Other random weights: it answers quickly, and says something else."""


@pytest.fixture(scope="session")
def models(installation: Installation, chat_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(
        teacher=installation.publish("teacher", chat_model_dir),
        good=installation.publish("student", chat_model_dir),
        better=installation.publish("student", _altered(chat_model_dir, tmp_path_factory.mktemp("better"), 0.001)),
        garbage=installation.publish("student", _altered(chat_model_dir, tmp_path_factory.mktemp("garbage"), None)),
    )


def _altered(source: Path, target: Path, noise: float | None) -> Path:
    """The same model with some noise in its weights, or with nothing but noise."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(source, target, dirs_exist_ok=True)
    torch.manual_seed(17)
    if noise is None:
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(source))
    else:
        model = LlamaForCausalLM.from_pretrained(source)
        with torch.no_grad():
            for weight in model.parameters():
                weight += noise * torch.randn_like(weight)
    model.save_pretrained(target)
    return target
