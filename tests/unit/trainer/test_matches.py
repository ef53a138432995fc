"""Which layers go together, what travels for it, and how the comparisons become terms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.batch import Batch, Sample, collate
from trainer.errors import UserError
from trainer.faculty import Answered
from trainer.head import Head
from trainer.imitation import hidden_mse, pooled, rkd_distance, token_similarity
from trainer.layers import layer_pairs
from trainer.matches import Match, match_objectives, teacher_taps
from trainer.objective import Forward, Needs, Step, Together
from trainer.objective_spec import MatchSpec
from trainer.peers import Peers
from trainer.teacher import Targets
from trainer.wanted import LAST_HIDDEN, Shape

TEACHER, STUDENT = Shape(6, 4), Shape(4, 2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(*matches: dict[str, Any], student: Shape = STUDENT, seed: int = 0) -> list[Match]:
    return match_objectives(tuple(MatchSpec(**one) for one in matches), TEACHER, student, Peers.alone(), seed)


@given(teacher=st.integers(1, 40), student=st.integers(1, 40))
def test_uniform_layers_end_at_the_last_and_never_go_back(teacher: int, student: int) -> None:
    pairs = layer_pairs(MatchSpec(feature="hidden", layer_mapping="uniform"), teacher, student)
    assert [ours for _, ours in pairs] == list(range(1, student + 1))
    theirs = [one for one, _ in pairs]
    assert theirs == sorted(theirs)
    assert (theirs[-1], min(theirs) >= 1) == (teacher, True)
    if teacher % student == 0:
        assert theirs == [m * (teacher // student) for m in range(1, student + 1)]


def test_layers_by_name_or_last_or_one_by_one() -> None:
    assert layer_pairs(MatchSpec(feature="attention"), 12, 4) == ((12, 4),)
    assert layer_pairs(MatchSpec(feature="attention", layer_mapping="all"), 3, 3) == ((1, 1), (2, 2), (3, 3))
    assert layer_pairs(MatchSpec(feature="hidden", layers=((0, 0), (7, 2))), 12, 4) == ((0, 0), (7, 2))
    with pytest.raises(UserError, match=r"the teacher has 4 layers and the student 2; use uniform or last") as error:
        made({"feature": "hidden", "layer_mapping": "all"})
    assert error.value.reason == "LAYERS_UNMATCHED"
    with pytest.raises(UserError, match=r"no pair \[4, 3\]: the teacher has 4 layers and the student 2"):
        made({"feature": "attention", "layers": [[1, 1], [4, 3]]})


def test_what_travels_is_asked_for_once() -> None:
    matches = made(
        {"feature": "hidden", "layer_mapping": "uniform"},
        {"feature": "value_relation"},
        {"feature": "attention", "layers": [[1, 1]]},
        {"feature": "token_similarity"},
        {"feature": "rkd_angle"},
    )
    assert teacher_taps(matches) == ("hidden:2", LAST_HIDDEN, "values:4", "scores:1")
    assert Together(matches).taps == ("hidden:1", LAST_HIDDEN, "values:2", "scores:1")
    assert Together(matches).needs == Needs.TEACHER | Needs.WHOLE_STEP
    assert Together(matches[:4]).needs == Needs.TEACHER


def test_only_hidden_states_of_another_width_are_projected_and_always_alike() -> None:
    assert made({"feature": "hidden"}, student=Shape(6, 2))[0].build() == {}
    assert made({"feature": "attention"}, {"feature": "token_similarity"})[0].build() == {}
    twice = [made({"feature": "hidden", "layer_mapping": "uniform"}, seed=7)[0].build() for _ in range(2)]
    assert list(twice[0]) == ["hidden_projection_0", "hidden_projection_1"]
    for name, one in twice[0].items():
        assert one.weight.shape == (6, 4)
        assert torch.equal(one.weight, twice[1][name].weight)
    other = made({"feature": "hidden"}, seed=8)[0].build()["hidden_projection_0"]
    assert not torch.equal(other.weight, twice[0]["hidden_projection_0"].weight)


def batch() -> Batch:
    samples = [Sample(sample_id=at, input_ids=[1] * size, labels=[1] * size) for at, size in enumerate((3, 4, 2))]
    return collate([[0, 1], [2]], samples, 0)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def forward(match: Match, inner: dict[str, Tensor], theirs: dict[str, Tensor], hidden_ND: Tensor) -> Forward:
    modules = nn.ModuleDict(dict(match.build()))
    answers = [Answered(Targets(hidden_ND=theirs.pop(LAST_HIDDEN, None), inner=theirs), None)]
    return Forward(batch(), hidden_ND, Head(torch.eye(4)), inner, answers, Step(60), modules)


def test_layers_are_averaged_and_weighted() -> None:
    (match,) = made({"feature": "hidden", "layer_mapping": "uniform", "weight": 3.0})
    ours = {"hidden:1": normal(1, 6, 4), LAST_HIDDEN: normal(2, 6, 4)}
    theirs = {"hidden:2": normal(3, 6, 6), LAST_HIDDEN: normal(4, 6, 6)}
    expected_theirs = dict(theirs)
    this = forward(match, ours, theirs, ours[LAST_HIDDEN])
    (term,) = match.terms(this).values()
    pairs = [("hidden:1", "hidden:2"), (LAST_HIDDEN, LAST_HIDDEN)]
    plain = [
        hidden_mse(F.linear(ours[one], this.modules[f"hidden_projection_{at}"].weight), expected_theirs[other])
        for at, (one, other) in enumerate(pairs)
    ]
    torch.testing.assert_close(term.sum, torch.stack(plain).mean())
    assert term.weight == 3.0


def test_tokens_and_samples_are_compared_in_the_final_hidden_states() -> None:
    hidden, teacher = normal(1, 6, 4), normal(2, 6, 6)
    owners = batch().owners_N()
    tokens, distance = made({"feature": "token_similarity"}, {"feature": "rkd_distance"})
    (term,) = tokens.terms(forward(tokens, {}, {LAST_HIDDEN: teacher}, hidden)).values()
    torch.testing.assert_close(term.sum, token_similarity(hidden, teacher, owners))
    (term,) = distance.terms(forward(distance, {}, {LAST_HIDDEN: teacher}, hidden)).values()
    relation = rkd_distance(pooled(hidden, owners, 3), pooled(teacher, owners, 3))
    torch.testing.assert_close(term.sum / 60, relation, check_dtype=False)
    assert term.weight == 25.0


def test_two_of_a_kind_have_names_of_their_own() -> None:
    one, other = made({"feature": "hidden"}, {"feature": "hidden", "layers": [[1, 1]], "loss": "cosine"})
    assert set(Together([one, other]).build()) == {"hidden_projection_0", "hidden_1_projection_0"}
    inner = {LAST_HIDDEN: normal(1, 6, 4), "hidden:1": normal(2, 6, 4)}
    theirs = {LAST_HIDDEN: normal(3, 6, 6), "hidden:1": normal(4, 6, 6)}
    names = [
        name for match in (one, other) for name in match.terms(forward(match, inner, dict(theirs), inner[LAST_HIDDEN]))
    ]
    assert names == ["hidden", "hidden_1"]
