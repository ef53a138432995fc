"""Each divergence against a plain float64 formula and its autograd, at its ends, and where everything is extreme."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_formulas import PLAIN, kl, mixture
from torch import Tensor

from trainer.divergences import DIVERGENCES, Settings, TaidPace, TaidSettings

TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, -1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.0, 2.0]], dtype=torch.float64)
CHOSEN = Settings(beta=0.3, skew_lambda=0.1, adaptive_kl_alpha=0.6, taid_t=0.7)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def by_autograd(name: str, teacher: Tensor, student: Tensor, chosen: Settings = CHOSEN) -> tuple[Tensor, Tensor]:
    logits = student.detach().clone().requires_grad_()
    value = PLAIN[name](teacher.log_softmax(dim=1), logits.log_softmax(dim=1), chosen)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def ours(name: str, teacher: Tensor, student: Tensor, chosen: Settings = CHOSEN) -> tuple[Tensor, Tensor]:
    return DIVERGENCES[name](teacher.log_softmax(dim=1), student.log_softmax(dim=1), chosen)


ORDINARY = st.floats(-6, 6).map(lambda x: round(x, 2))
EXTREME = st.sampled_from([-60.0, -59.5, -1.0, 0.0, 0.0, 1.0, 59.5, 60.0])


@st.composite
def pairs(draw: st.DrawFn, entries: st.SearchStrategy[float] = ORDINARY | EXTREME) -> tuple[Tensor, Tensor]:
    """Logits of teacher and student, with ties and with rows that are all but one-hot."""
    tokens = draw(st.integers(2, 6))
    row = st.lists(entries, min_size=tokens, max_size=tokens)
    rows = draw(st.integers(1, 3))
    first, second = (draw(st.lists(row, min_size=rows, max_size=rows)) for _ in range(2))
    return torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64)


def kinks(teacher: Tensor, student: Tensor) -> Tensor:
    """[R] rows in which some probability of both sides is the same but for float32's rounding."""
    p_RV, q_RV = teacher.softmax(dim=1), student.softmax(dim=1)
    return ((p_RV - q_RV).abs() <= 1e-5 * torch.maximum(p_RV, q_RV)).any(dim=1)


def test_the_plain_formulas_cover_every_member() -> None:
    assert PLAIN.keys() == DIVERGENCES.keys()


@pytest.mark.parametrize(
    ("temperature", "forward", "reverse"),
    [(1, 1.1203286915, 1.5300754549), (2, 0.3978266011, 0.4287661432), (4, 0.1081847360, 0.1082553723)],
)
def test_both_directions_have_the_known_values(temperature: int, forward: float, reverse: float) -> None:
    found = [
        ours(name, TEACHER / temperature, STUDENT / temperature)[0].mean().item()
        for name in ("forward_kl", "reverse_kl")
    ]
    assert found == pytest.approx([forward, reverse], abs=1e-10)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=60)
@given(pair=pairs())
def test_value_and_gradient_are_those_of_autograd(name: str, pair: tuple[Tensor, Tensor]) -> None:
    value, gradient = ours(name, *pair)
    expected, downhill = by_autograd(name, *pair)
    if name == "tvd":
        gradient[kinks(*pair)] = downhill[kinks(*pair)]
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(gradient, downhill, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=60)
@given(pair=pairs())
def test_float32_is_finite_and_near_float64_however_far_apart_the_sides_are(
    name: str, pair: tuple[Tensor, Tensor]
) -> None:
    teacher, student = (side.float() for side in pair)
    value, gradient = ours(name, teacher, student)
    exact, downhill = ours(name, teacher.double(), student.double())
    if name == "adaptive_kl":  # which entries are the head may hang on the last bit; it lies between two others
        ends = [ours(other, teacher.double(), student.double())[0] for other in ("forward_kl", "reverse_kl")]
        assert (torch.minimum(*ends) - 2e-5 <= value).all()
        assert (value <= torch.maximum(*ends) * (1 + 1e-4) + 2e-5).all()
        assert gradient.isfinite().all()
        return
    torch.testing.assert_close(value, exact.float(), rtol=1e-4, atol=2e-5)
    if name == "tvd":  # |p - q| has a kink where they meet: which side of it a rounding falls on is anybody's guess
        smooth = ~kinks(*pair)
        assert (gradient.abs() <= student.softmax(dim=1) * (1 + 1e-4) + 1e-6).all()
        gradient, downhill = gradient[smooth], downhill[smooth]
    torch.testing.assert_close(gradient, downhill.float(), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=25)
@given(pair=pairs())
def test_equal_sides_have_no_distance_and_no_gradient(
    name: str, dtype: torch.dtype, pair: tuple[Tensor, Tensor]
) -> None:
    logits = pair[0].to(dtype)
    value, gradient = ours(name, logits, logits)
    rounding = 8 * torch.finfo(dtype).eps * (1 + logits.abs().max().item()) if name == "taid" else 0.0
    assert value.abs().max().item() <= rounding
    assert gradient.abs().max().item() <= rounding


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=40)
@given(pair=pairs())
def test_no_distance_is_negative_and_no_gradient_moves_all_logits_together(
    name: str, pair: tuple[Tensor, Tensor]
) -> None:
    value, gradient = ours(name, *pair)
    assert value.min().item() >= -1e-12
    assert gradient.sum(dim=1).abs().max().item() <= 1e-9 * max(1.0, gradient.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("near", "end"), [(1e-6, "forward_kl"), (1.0 - 1e-6, "reverse_kl")])
@settings(deadline=None, max_examples=30)
@given(pair=pairs(ORDINARY))
def test_jsd_meets_both_kls_without_a_jump(
    near: float, end: str, dtype: torch.dtype, pair: tuple[Tensor, Tensor]
) -> None:
    teacher, student = (side.to(dtype) for side in pair)
    for part, expected in zip(
        ours("jsd", teacher, student, Settings(beta=near)), ours(end, teacher, student), strict=True
    ):
        torch.testing.assert_close(part, expected, rtol=0.05, atol=0.05)
    exactly = Settings(beta=round(near))
    assert torch.equal(ours("jsd", teacher, student, exactly)[1], ours(end, teacher, student)[1])


@pytest.mark.parametrize("beta", [1e-300, 1e-20, 1e-9, 1e-5, 1.0 - 1e-5, 1.0 - 1e-9, 1.0 - 1e-16])
@settings(deadline=None, max_examples=20)
@given(pair=pairs())
def test_jsd_is_finite_at_every_beta(beta: float, pair: tuple[Tensor, Tensor]) -> None:
    value, gradient = ours("jsd", *(side.float() for side in pair), Settings(beta=beta))
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("plain", ["forward_kl", "reverse_kl"])
@settings(deadline=None, max_examples=30)
@given(pair=pairs(), skew=st.sampled_from([0.0, 1e-12]))
def test_without_skew_the_skewed_ones_are_the_plain_ones(plain: str, pair: tuple[Tensor, Tensor], skew: float) -> None:
    teacher, student = (side.float() for side in pair)
    value, gradient = ours(f"skewed_{plain}", teacher, student, Settings(skew_lambda=skew))
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    if skew == 0.0:
        expected, downhill = ours(plain, teacher, student)
        assert torch.equal(value, expected)
        assert torch.equal(gradient, downhill)


def test_jsd_in_the_middle_is_four_times_the_plain_one() -> None:
    p, q = TEACHER.log_softmax(dim=1), STUDENT.log_softmax(dim=1)
    mixed = mixture(p, q, 0.5)
    plain = (kl(p, mixed) + kl(q, mixed)) / 2
    torch.testing.assert_close(ours("jsd", TEACHER, STUDENT, Settings(beta=0.5))[0], 4 * plain)


def test_the_head_of_adaptive_kl_decides_which_direction_counts() -> None:
    """Where all difference lies in the head it is forward, where it lies in the tail reverse."""
    p = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64).log()
    tail_apart = torch.tensor([[0.8, 0.15, 0.05]], dtype=torch.float64).log()
    torch.testing.assert_close(ours("adaptive_kl", p, tail_apart)[0], ours("reverse_kl", p, tail_apart)[0])
    two = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    head_apart = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log()
    whole = Settings(adaptive_kl_alpha=0.999)
    torch.testing.assert_close(ours("adaptive_kl", two, head_apart, whole)[0], ours("forward_kl", two, head_apart)[0])


@pytest.mark.parametrize(("t", "name"), [(1.0, "forward_kl"), (0.0, None)])
def test_taid_ends_at_the_teacher_and_starts_at_the_student(t: float, name: str | None) -> None:
    value, gradient = ours("taid", TEACHER, STUDENT, Settings(taid_t=t))
    if name is None:
        assert value.abs().max().item() < 1e-15
        assert gradient.abs().max().item() < 1e-15
    else:
        torch.testing.assert_close((value, gradient), ours(name, TEACHER, STUDENT))


LOSSES = st.lists(st.floats(1e-6, 20), min_size=1, max_size=30)
PACES = st.builds(
    lambda a, b, alpha, beta: TaidSettings(min(a, b), max(a, b), alpha, beta),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 0.999),
)


def authors_pace(losses: list[float], chosen: TaidSettings) -> list[float]:
    """Written after the paper's algorithm, with torch's sigmoid."""
    t, momentum, previous, found = chosen.t_start, 0.0, math.inf, []
    for step, loss in enumerate(losses, start=1):
        if math.isfinite(previous):
            momentum = chosen.beta * momentum + (1 - chosen.beta) * (previous - loss) / (previous + 1e-15)
            raised = t + chosen.alpha * torch.tensor(momentum, dtype=torch.float64).sigmoid().item() * (1 - t)
            planned = chosen.t_start + (chosen.t_end - chosen.t_start) * step / len(losses)
            t = min(chosen.t_end, max(planned, raised))
        previous = loss
        found.append(t)
    return found


@settings(deadline=None, max_examples=150)
@given(losses=LOSSES, chosen=PACES)
def test_the_pace_of_taid_is_the_authors_never_falls_and_stays_within_its_bounds(
    losses: list[float], chosen: TaidSettings
) -> None:
    pace, found = TaidPace(chosen.t_start), []
    for step, loss in enumerate(losses, start=1):
        pace = pace.after(loss, step / len(losses), chosen)
        found.append(pace.t)
    assert found == pytest.approx(authors_pace(losses, chosen), rel=1e-12, abs=1e-12)
    assert all(one <= other for one, other in zip([chosen.t_start, *found], found, strict=False))
    assert all(chosen.t_start <= t <= chosen.t_end for t in found)
    assert len(found) == 1 or found[-1] == pytest.approx(chosen.t_end)


@pytest.mark.parametrize("first", [0.0, -1e-9, -1e-15])
def test_the_pace_goes_on_after_a_loss_of_nothing(first: float) -> None:
    """A target that starts at the student has no distance; rounding may even leave it below zero."""
    pace = TaidPace(0.0).after(first, 0.1, TaidSettings(t_start=0.0)).after(0.5, 0.2, TaidSettings(t_start=0.0))
    assert pace.t == pytest.approx(0.2)
    assert math.isfinite(pace.momentum)
