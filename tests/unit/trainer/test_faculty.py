"""Who is asked about which samples, what the answers weigh, and that equal models are asked once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batch import Batch, Sample, collate, empty_batch
from trainer.faculty import Answered, Faculty
from trainer.head import Head
from trainer.spec import DistillSpec, parse_spec
from trainer.teacher import Targets
from trainer.wanted import Shape, TeacherFacts, Wanted

HIDDEN = Wanted()


class Scribe:
    """A teacher that remembers what it was asked; its hidden states are its number and the ids of the samples."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: list[tuple[Batch, Wanted]] = []

    def facts(self, batch: Batch) -> TeacherFacts:
        return TeacherFacts(Shape(2, self.number + 1), len(batch.sample_ids), 4, 0.0, 0.0)

    def head(self) -> Head:
        raise NotImplementedError

    def request(self, batch: Batch, wanted: Wanted) -> Callable[[], Targets]:
        self.asked.append((batch, wanted))
        ids_N = torch.tensor(batch.sample_ids)[batch.owners_N()] if batch.sample_ids else torch.zeros(0)
        return lambda: Targets(torch.stack([torch.full_like(ids_N, self.number), ids_N], dim=1))

    def generate(self, *_: Any) -> list[list[int]]:
        raise NotImplementedError

    def score(self, *_: Any) -> list[tuple[float, int]]:
        raise NotImplementedError


def spec(teachers: list[dict[str, Any]], *, routed: bool = False) -> DistillSpec:
    columns = {"columns": {"teacher_key": "who"}} if routed else {}
    found = parse_spec(
        "Distill",
        {
            "student": {"model": "org/student"},
            "teachers": teachers,
            "data": {"train": "org/data", **columns},
            "training": {"max_steps": 1},
        },
    )
    assert isinstance(found, DistillSpec)
    return found


def faculty(teachers: list[dict[str, Any]], *, routed: bool = False) -> Faculty:
    return Faculty.of(spec(teachers, routed=routed), [teacher["model"] for teacher in teachers], Scribe)


def batch(*teachers: int) -> Batch:
    samples = [
        Sample(sample_id=at, input_ids=[1, 2, 3], labels=[1, 2, 3], teacher=one) for at, one in enumerate(teachers)
    ]
    half = len(samples) // 2
    return collate([row for row in (range(half), range(half, len(samples))) if row], samples, 0)


def ask(this: Faculty, question: Batch, wanted: Wanted = HIDDEN) -> list[Answered]:
    return this.request(question, wanted, [None] * len(this.teachers))()


MODELS = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 9)), min_size=2, max_size=6)


@settings(deadline=None)
@given(MODELS)
def test_weights_are_shares_and_equal_models_are_asked_once(models: list[tuple[str, float]]) -> None:
    this = faculty([{"model": f"org/{name}", "name": f"t{at}", "weight": w} for at, (name, w) in enumerate(models)])
    names = list(dict.fromkeys(name for name, _ in models))
    answers = ask(this, batch(0, 0))
    total = sum(weight for _, weight in models)
    expected = [sum(weight for name, weight in models if name == one) / total for one in names]
    assert [one.weight for one in answers] == pytest.approx(expected)
    assert sum(one.weight for one in answers) == pytest.approx(1.0)
    assert [len(teacher.asked) for teacher in this.teachers] == [1] * len(names)
    assert all(one.rows_M is None for one in answers)


def test_one_model_in_two_precisions_is_two_teachers() -> None:
    models = [{"model": "org/a", "dtype": dtype} for dtype in ("float32", "bfloat16", "float32")]
    this = faculty(models)
    assert this.places == (0, 1, 0)
    assert [one.shape.num_layers for one in this.facts(batch(0))] == [1, 2]


@settings(deadline=None)
@given(keys=st.lists(st.integers(0, 3), min_size=1, max_size=8))
def test_each_sample_is_answered_by_its_own_teacher_alone(keys: list[int]) -> None:
    """Places 0 and 2 are one model."""
    this = faculty([{"model": f"org/{name}"} for name in "abac"], routed=True)
    question = batch(*keys)
    answers = ask(this, question)
    number = dict(enumerate(this.places))
    assert len(answers) == len({number[key] for key in keys})
    assert sorted(row for one in answers for row in one.rows_M.tolist()) == list(range(question.num_targets))
    owners = question.owners_N()
    for one in answers:
        assert one.weight == 1.0
        for (teacher, sample), row in zip(one.targets.hidden_ND.tolist(), one.rows_M.tolist(), strict=True):
            assert sample == owners[row]
            assert teacher == number[keys[int(sample)]]


def test_nobody_is_asked_about_nothing_where_each_sample_has_its_teacher() -> None:
    this = faculty([{"model": "org/a"}, {"model": "org/b"}], routed=True)
    assert ask(this, empty_batch(0)) == []
    assert [teacher.asked for teacher in this.teachers] == [[], []]


def test_everybody_is_asked_about_an_idle_row_where_all_answer_all() -> None:
    """Shards of ZeRO-3 keep step."""
    this = faculty([{"model": "org/a"}, {"model": "org/b"}])
    assert [len(one.targets.hidden_ND) for one in ask(this, empty_batch(0))] == [0, 0]


def test_inner_values_are_those_of_the_first_teacher_alone() -> None:
    this = faculty([{"model": f"org/{name}"} for name in "bab"])
    ask(this, batch(0), Wanted("full_logits", taps=("hidden:1",)))
    assert [teacher.asked[0][1] for teacher in this.teachers] == [
        Wanted("full_logits", taps=("hidden:1",)),
        Wanted("full_logits"),
    ]
    assert this.first is this.teachers[0]
    answers = ask(this, batch(0), Wanted(None, taps=("hidden:1",)))
    assert len(answers) == 1
    assert [len(teacher.asked) for teacher in this.teachers] == [2, 1]


def test_questions_go_out_before_any_answer_is_awaited() -> None:
    this = faculty([{"model": "org/a"}, {"model": "org/b"}])
    this.request(batch(0), Wanted(), [None, None])
    assert [len(teacher.asked) for teacher in this.teachers] == [1, 1]


def test_a_faculty_of_one() -> None:
    only = Scribe(0)
    (answer,) = ask(Faculty.alone(only), batch(0, 5))
    assert (answer.weight, answer.rows_M) == (1.0, None)
