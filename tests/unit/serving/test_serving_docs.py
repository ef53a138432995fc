"""Numbers and names that the documents of serving give are those of the code."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from serving.mirroring import Mirroring
from serving.options import ENGINE_LIMITS

DOCS = Path(__file__).parents[3] / "docs"


def row(document: str, name: str) -> str:
    """Of a table: the line that begins with this name."""
    (found,) = [line for line in (DOCS / document).read_text().splitlines() if line.startswith(f"| `{name}` |")]
    return found


@pytest.mark.parametrize("engine", ENGINE_LIMITS)
def test_every_limit_of_an_engine_is_named(engine):
    assert set(re.findall(r"`(\w+)`", row("deployments.md", engine))) == {engine, *ENGINE_LIMITS[engine]}


@pytest.mark.parametrize(
    ("metric", "bound"),
    [("mirrored_left_out", "most_asked"), ("mirrored_not_compared", "most_compared")],
)
def test_what_bounds_mirroring_is_told(metric, bound):
    most = inspect.signature(Mirroring).parameters[bound].default
    assert f" {most} " in row("serving-api.md", f"athanor_gateway_{metric}_total")
