"""Which form is chosen, what it weighs, and which forms are refused, with the teacher and the mend named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.payload import choose_payload
from trainer.spec import DistillSpec, parse_spec
from trainer.wanted import Shape, TeacherFacts, Wanted


def spec(*models: str, **objective: Any) -> DistillSpec:
    found = parse_spec(
        "Distill",
        {
            "student": {"model": "org/student"},
            "teachers": [{"model": model} for model in models or ("org/teacher",)],
            "data": {"train": "org/data"},
            "training": {"max_steps": 1},
            "objective": objective,
        },
    )
    assert isinstance(found, DistillSpec)
    return found


def facts(hidden: int = 64, tokens: int = 1000, *, item: int = 2, error: float = 0.0) -> TeacherFacts:
    return TeacherFacts(Shape(hidden, 2), tokens, item, error, 0.01)


@given(hidden=st.integers(1, 5000), tokens=st.integers(1, 5000), item=st.sampled_from([2, 4]))
def test_auto_takes_the_smaller_exact_form(hidden: int, tokens: int, item: int) -> None:
    wanted, why = choose_payload(spec(), [facts(hidden, tokens, item=item)], (0,), ())
    assert wanted == Wanted("hidden_states" if hidden <= tokens else "full_logits")
    assert why.startswith(f"{wanted.payload}, {min(hidden, tokens) * item:,} bytes a position, the smaller exact form")
    assert f"{max(hidden, tokens) * item:,} bytes)" in why


def test_of_several_teachers_the_bytes_of_all_decide() -> None:
    narrow, wide = facts(10, 100), facts(300, 100)
    assert choose_payload(spec("a/a", "b/b"), [narrow, wide], (0, 1), ())[0].payload == "full_logits"
    wanted, why = choose_payload(spec("a/a", "b/b"), [narrow, facts(150, 100)], (0, 1), ())
    assert wanted.payload == "hidden_states"
    assert "20 bytes, 300 bytes a position" in why


def test_auto_sends_logits_where_a_head_does_more() -> None:
    wanted, why = choose_payload(spec("a/a", "b/b"), [facts(), facts(error=0.2)], (0, 1), ("hidden:1",))
    assert wanted == Wanted("full_logits", own_logits=True, taps=("hidden:1",))
    assert why.endswith("as a teacher's head does more than its hidden states and weights say")
    assert choose_payload(spec(), [facts(error=0.01)], (0,), ())[0].payload == "hidden_states"


def test_the_top_travels_at_the_temperature_of_the_loss_and_weighs_its_entries() -> None:
    chosen = spec(teacher_payload="topk_logits", loss_top_k=50, temperature=3.0)
    wanted, why = choose_payload(chosen, [facts(), facts(tokens=20)], (0, 1), ("scores:1",))
    assert wanted == Wanted("topk_logits", 50, 3.0, taps=("scores:1",))
    told = "404 bytes, 164 bytes a position beside the inner values"
    assert why == f"topk_logits, {told}, as objective.teacher_payload says"


@pytest.mark.parametrize("form", ["hidden_states", "full_logits"])
def test_whole_answers_do_not_depend_on_the_temperature(form: str) -> None:
    wanted, _ = choose_payload(spec(teacher_payload=form, temperature=3.0), [facts()], (0,), ())
    assert wanted == Wanted(form)


def test_inner_values_alone_need_no_payload() -> None:
    chosen = spec(kd_ratio=0.0, intermediate_matches=[{"feature": "hidden"}])
    wanted, why = choose_payload(chosen, [facts(error=1.0)], (0,), ("hidden:last",))
    assert wanted == Wanted(None, taps=("hidden:last",))
    assert why == "inner values beside the labels, as objective.kd_ratio is 0"


def test_hidden_states_that_would_not_be_exact_are_refused_by_the_name_of_their_teacher() -> None:
    chosen = spec("a/plain", "a/plain", "b/odd", teacher_payload="hidden_states")
    with pytest.raises(UserError) as error:
        choose_payload(chosen, [facts(), facts(error=0.25)], (0, 0, 1), ())
    assert error.value.reason == "PAYLOAD_INEXACT"
    assert str(error.value) == (
        "objective.teacher_payload: hidden_states would not be exact for b/odd: its logits differ from its head times "
        "its hidden states by 25.0% of the largest logit, where rounding explains 1.00%; use full_logits, topk_logits "
        "or auto"
    )


@pytest.mark.parametrize("form", ["full_logits", "topk_logits"])
def test_logits_of_any_head_may_travel(form: str) -> None:
    """They are then the model's own."""
    wanted, _ = choose_payload(spec(teacher_payload=form), [facts(error=1.0)], (0,), ())
    assert (wanted.payload, wanted.own_logits) == (form, True)
    assert not choose_payload(spec(teacher_payload=form), [facts()], (0,), ())[0].own_logits
