from __future__ import annotations

from typing import Any

import pytest
from fakes import World

from cluster.errors import InvalidInput, NotFound
from cluster.registry import ModelReference, parse_reference, pin, publication, registry_references
from cluster.store.records import Outcome, Terminal
from trainer.spec import parse_spec

TRAINING: dict[str, Any] = {"data": {"train": "d.jsonl"}, "training": {"max_steps": 1}}


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("bot", ModelReference("bot")),
        ("bot@champion", ModelReference("bot", alias="champion")),
        ("bot@3", ModelReference("bot", version=3)),
    ],
)
def test_references(text: str, reference: ModelReference) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize(
    "text", ["", "@", "bot@", "bot@0", "Bot@x", "bot@x@y", "bot@9999999999", "org/name", "bot\n", "bot@1\n"]
)
def test_wrong_references(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_reference(text)


def test_only_registry_references_are_pinned() -> None:
    spec = parse_spec("Distill", {**TRAINING, "teachers": [{"model": "t@champion"}], "student": {"model": "org/name"}})
    assert registry_references(spec) == {"spec.teachers[0].model": "t@champion"}


def test_missing_model_names_the_field_and_what_there_is(world: World) -> None:
    spec = parse_spec("FineTune", {**TRAINING, "student": {"model": "bot@champion"}})
    with pytest.raises(NotFound, match="no model of the name 'bot' was published") as caught:
        pin(world.store, spec)
    assert (caught.value.reason, caught.value.violations[0].path) == ("MODEL_NOT_FOUND", "spec.student.model")


def test_publication_carries_lineage_and_figures(world: World) -> None:
    job = world.job(world.create(teachers=[{"model": "t@champion"}, {"model": "/a/directory"}]))
    object.__setattr__(job, "resolved_models", {"t@champion": "t@3"})
    figures = {"student": {"exact_match": 0.5}, "teacher": {"exact_match": 0.9}}
    terminal = Terminal(
        Outcome.SUCCEEDED, model_path="/m", model_manifest_sha256="ff", summary=figures, num_parameters=7
    )
    made = publication(job, terminal)
    assert made is not None
    assert (made.name, made.alias, made.teachers) == ("student", "champion", ("t@3",))
    assert (made.num_parameters, made.metrics, made.manifest_sha256) == (7, {"exact_match": 0.5}, "ff")


def test_nothing_is_published_without_a_model_or_a_wish(world: World) -> None:
    job = world.job(world.create())
    assert publication(job, Terminal(Outcome.SUCCEEDED)) is None
    silent = world.job(world.create(publish=None))
    assert publication(silent, Terminal(Outcome.SUCCEEDED, model_path="/m")) is None
