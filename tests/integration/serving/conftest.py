"""The model of `chat_model_dir`, loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.loading import LoadedModel, load
from serving.model_dir import verify


@pytest.fixture(scope="session")
def loaded(chat_model_dir: Path) -> Iterator[LoadedModel]:
    model = load(verify(chat_model_dir))
    yield model
    model.engine.close()
