"""Models that are not there yet: a job that depends on another may name, by its alias, what that one will publish.

It gets that very version, in the transaction in which the other succeeds. Knows specs as JSON, and no tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]


def from_dependency(spec: Json, publisher: Json) -> list[str]:
    """References of a spec that mean what a job with the other spec publishes."""
    publish = publisher.get("publish") or {}
    made = f"{publish.get('model')}@{publish.get('alias')}"
    return [text for text in models_of(spec) if publish.get("alias") and text == made]


def models_of(spec: Json) -> Iterator[str]:
    """The models that a spec names: of the student, and of each teacher."""
    for block in (spec.get("student") or {}, *(spec.get("teachers") or ())):
        if block.get("model"):
            yield block["model"]
