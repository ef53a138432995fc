"""The model of `chat_model_dir`, loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from serving.loading import LoadedModel, load
from serving.model_dir import verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@pytest.fixture(scope="session")
def loaded(chat_model_dir: Path) -> Iterator[LoadedModel]:
    model = load(verify(chat_model_dir))
    yield model
    model.engine.close()


@pytest.fixture(scope="session")
def model(chat_model_dir: Path) -> PreTrainedModel:
    """A second copy, for `model.generate`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(chat_model_dir).eval()
