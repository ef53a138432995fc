"""The forms of an answer against each other: what its top says, several teachers together, some rows alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_formulas import PLAIN
from torch import Tensor

from trainer.answers import (
    HiddenAnswer,
    LogitsAnswer,
    Mix,
    Opened,
    TeacherSide,
    TopkAnswer,
    divergence_rows,
    soften,
    topk_answer,
)
from trainer.divergences import DIVERGENCES, Settings
from trainer.head import Head
from trainer.losses import LossSums, Pieces, distillation_loss

CHOSEN = Settings(beta=0.3, skew_lambda=0.1, adaptive_kl_alpha=0.6, taid_t=0.7)
PROCESSED = ("forward_kl", "reverse_kl", "jsd", "skewed_forward_kl", "skewed_reverse_kl", "tvd")
"""Those that never grow when outcomes are taken together (data processing inequality)."""
SEEDS = st.integers(0, 10_000)
TOKENS = 9


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def logits(seed: int, rows: int = 4, tokens: int = TOKENS) -> Tensor:
    return 2.0 * torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows_of(answer: Tensor | TopkAnswer, student: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    labels = torch.zeros(len(student), dtype=torch.long)
    return divergence_rows(soften(student, mix.temperature), [Opened(answer, 1.0)], labels, mix)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, temperature=st.sampled_from([1.0, 2.5]), more=st.integers(0, 3))
def test_the_top_of_all_tokens_says_all(name: str, seed: int, temperature: float, more: int) -> None:
    teacher, student, mix = logits(seed), logits(seed + 1), Mix(1.0, temperature, name, CHOSEN)
    whole = rows_of(teacher, student, mix)
    for add_tail in (True, False):
        top = rows_of(topk_answer(teacher, TOKENS + more, temperature), student, replace(mix, add_tail=add_tail))
        torch.testing.assert_close(top, whole)


@pytest.mark.parametrize("name", PROCESSED)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, temperature=st.sampled_from([1.0, 2.5]))
def test_the_tail_bucket_never_says_more_than_all_tokens_and_nears_them(
    name: str, seed: int, temperature: float
) -> None:
    """Every further token splits the bucket, so the divergence can only grow."""
    teacher, student, mix = logits(seed), logits(seed + 1), Mix(1.0, temperature, name, CHOSEN)
    whole, _ = rows_of(teacher, student, mix)
    found = [rows_of(topk_answer(teacher, k, temperature), student, mix)[0] for k in range(1, TOKENS + 1)]
    assert all((one <= other + 1e-12).all() for one, other in zip(found, [*found[1:], whole], strict=True))
    torch.testing.assert_close(found[-1], whole)


@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, top_k=st.integers(1, TOKENS - 1), add_tail=st.booleans())
def test_the_gradient_of_the_top_is_that_of_autograd(name: str, seed: int, top_k: int, add_tail: bool) -> None:
    teacher, student = logits(seed), logits(seed + 1).requires_grad_()
    answer = topk_answer(teacher, top_k, 1.0)
    value, gradient = rows_of(answer, student.detach(), Mix(1.0, 1.0, name, CHOSEN, add_tail=add_tail))
    ids = teacher.topk(top_k, dim=1).indices
    expected = PLAIN[name](*(bucketed(side, ids, add_tail=add_tail) for side in (teacher, student)), CHOSEN)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), student)[0], rtol=1e-8, atol=1e-11)


def bucketed(side: Tensor, ids: Tensor, *, add_tail: bool) -> Tensor:
    """Log-probabilities of chosen tokens, and of all others together or renormalised without them."""
    if not add_tail:
        return side.gather(1, ids).log_softmax(dim=1)
    probs = side.softmax(dim=1)
    rest = probs.scatter(1, ids, 0.0).sum(dim=1, keepdim=True)
    return torch.cat([probs.gather(1, ids), rest], dim=1).log()


@pytest.mark.parametrize("name", PROCESSED)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, top_k=st.integers(1, TOKENS - 1), shift=st.sampled_from([-3.0, -0.5, 0.5, 3.0]))
def test_mass_that_leaves_the_tokens_that_travel_is_never_rewarded(
    name: str, seed: int, top_k: int, shift: float
) -> None:
    """The student differs by the weight of its tail alone: downhill leads back, and the way is no nearer than zero."""
    teacher = logits(seed)
    in_top = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, teacher.topk(top_k, dim=1).indices, True)
    student = torch.where(in_top, teacher, teacher + shift)
    value, gradient = rows_of(topk_answer(teacher, top_k, 1.0), student, Mix(1.0, 1.0, name, CHOSEN))
    pull = gradient.masked_fill(in_top, 0.0).sum(dim=1)
    assert (value > 0).all()
    assert (pull * shift > 0).all()


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, top_k=st.integers(1, TOKENS - 1))
def test_forward_kl_pulls_the_tail_by_the_mass_that_is_amiss(seed: int, top_k: int) -> None:
    teacher, student = logits(seed), logits(seed + 1)
    answer = topk_answer(teacher, top_k, 1.0)
    _, gradient = rows_of(answer, student, Mix(1.0, 1.0, "forward_kl"))
    in_top = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, answer.ids_MK.long(), True)
    amiss = (student.softmax(dim=1) - teacher.softmax(dim=1)).masked_fill(in_top, 0.0).sum(dim=1)
    torch.testing.assert_close(gradient.masked_fill(in_top, 0.0).sum(dim=1), amiss, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("add_tail", [True, False])
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, top_k=st.integers(1, 40), scale=st.sampled_from([1.0, 30.0, 90.0]))
def test_tops_of_sides_that_give_each_other_no_mass_are_finite(name, add_tail, seed, top_k, scale) -> None:
    """In float32 the mass of the tail may be less than the smallest number there is."""
    teacher, student = (scale * logits(at, 3, 40).float() for at in (seed, seed + 1))
    mix = Mix(1.0, 1.0, name, CHOSEN, add_tail=add_tail)
    for theirs, ours in ((teacher, student), (student, teacher), (teacher, teacher)):
        value, gradient = rows_of(topk_answer(theirs, top_k, 1.0), ours, mix)
        assert value.isfinite().all()
        assert value.min().item() >= -1e-4
        assert gradient.isfinite().all()
        assert gradient.abs().max().item() <= 1e3


@pytest.mark.parametrize("name", DIVERGENCES)
def test_without_the_tail_mass_may_leave_unseen(name: str) -> None:
    """Why it is called biased: all but nothing is left for the teacher's tokens, and it costs nothing."""
    teacher = logits(3)
    in_top = torch.zeros_like(teacher, dtype=torch.bool).scatter_(1, teacher.topk(3, dim=1).indices, True)
    student = torch.where(in_top, teacher, teacher + 20.0)
    answer, mix = topk_answer(teacher, 3, 1.0), Mix(1.0, 1.0, name, CHOSEN)
    assert rows_of(answer, student, replace(mix, add_tail=False))[0].abs().max().item() < 1e-12
    assert rows_of(answer, student, mix)[0].min().item() > 0.1


def test_the_rest_of_a_top_is_the_mass_of_all_others() -> None:
    teacher = logits(5)
    answer = topk_answer(teacher, 4, 2.0)
    mass = answer.log_probs_MK.exp().sum(dim=1) + answer.rest_M.exp()
    torch.testing.assert_close(mass, torch.ones(4, dtype=torch.float64))
    assert torch.equal(answer.ids_MK.long(), teacher.topk(4, dim=1).indices)


class Staff:
    """A student, and teachers of every form."""

    def __init__(self, seed: int, positions: int = 7) -> None:
        g = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(positions, 5, generator=g, dtype=torch.float64).requires_grad_()
        self.weight = torch.randn(TOKENS + 3, 5, generator=g, dtype=torch.float64).requires_grad_()
        self.labels = torch.randint(0, TOKENS, (positions,), generator=g)
        self.teachers = [torch.randn(positions, TOKENS + 2, generator=g, dtype=torch.float64) for _ in range(3)]

    def side(self, index: int, form: str, temperature: float, weight: float = 1.0, rows: Tensor | None = None):
        whole = self.teachers[index] if rows is None else self.teachers[index][rows]
        if form == "hidden":
            return TeacherSide(HiddenAnswer(whole, Head(torch.eye(TOKENS + 2, dtype=torch.float64))), weight, rows)
        if form == "full":
            return TeacherSide(LogitsAnswer(whole), weight, rows)
        return TeacherSide(topk_answer(whole[:, :TOKENS], 4, temperature), weight, rows)

    def loss(self, sides: list[TeacherSide], mix: Mix, pieces: Pieces | None = None) -> LossSums:
        return distillation_loss(
            self.hidden, Head(self.weight), self.labels, sides, mix, num_tokens=TOKENS, pieces=pieces
        )

    def gradients(self, total: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(total, (self.hidden, self.weight))

    def student(self) -> Tensor:
        return (self.hidden @ self.weight.T)[:, :TOKENS]


FORMS = ("hidden", "full", "top")
PIECES = st.builds(Pieces, st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DIVERGENCES)
@settings(deadline=None, max_examples=8)
@given(seed=SEEDS, pieces=PIECES, temperature=st.sampled_from([1.0, 2.0]), data=st.data())
def test_pieces_change_nothing_whoever_answers_what(name, form, seed, pieces, temperature, data) -> None:
    """Two teachers: one of all rows, one of some."""
    staff, mix = Staff(seed), Mix(0.7, temperature, name, CHOSEN)
    some = torch.tensor(sorted(data.draw(st.sets(st.integers(0, 6)))), dtype=torch.long)
    sides = [staff.side(0, form, temperature, 0.75), staff.side(1, form, temperature, 0.25, some)]
    cut, whole = staff.loss(sides, mix, pieces), staff.loss(sides, mix, Pieces(99, 99))
    torch.testing.assert_close(cut.total, whole.total, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(staff.gradients(cut.total), staff.gradients(whole.total), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, pieces=PIECES, data=st.data())
def test_teachers_of_some_rows_say_what_they_say_of_those_alone(form, seed, pieces, data) -> None:
    """Routing: each position has one teacher; the loss is that of each teacher's positions by themselves."""
    staff, mix = Staff(seed), Mix(1.0, 2.0, "jsd", CHOSEN)
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=7, max_size=7)))
    rows = [(owner == index).nonzero()[:, 0] for index in range(3)]
    together = staff.loss([staff.side(index, form, 2.0, 1.0, rows[index]) for index in range(3)], mix, pieces)
    alone = []
    for index in range(3):
        mine = Staff(seed)
        mine.labels, hidden = mine.labels[rows[index]], mine.hidden[rows[index]].detach()
        side = replace(mine.side(index, form, 2.0, 1.0, rows[index]), rows_M=None)
        alone.append(
            distillation_loss(hidden, Head(mine.weight), mine.labels, [side], mix, num_tokens=TOKENS).divergence
        )
    torch.testing.assert_close(together.divergence, torch.stack(alone).sum(), rtol=1e-11, atol=1e-11)


def plain_ensemble(staff: Staff, shares: tuple[float, ...], mix: Mix) -> Tensor:
    """Of three teachers of all rows."""
    student = (staff.student() / mix.temperature).log_softmax(dim=1)
    dense = [one[:, :TOKENS] for one in staff.teachers]

    def distance(teacher: Tensor) -> Tensor:
        return PLAIN[mix.divergence]((teacher / mix.temperature).log_softmax(dim=1), student, mix.settings)

    if mix.ensemble == "sum":
        return sum(share * distance(one).sum() for share, one in zip(shares, dense, strict=True))
    if mix.ensemble == "averaged_logits":
        return distance(sum(share * one for share, one in zip(shares, dense, strict=True))).sum()
    known = torch.stack([one.log_softmax(dim=1)[torch.arange(7), staff.labels] for one in dense])
    best = known.argmax(dim=0).tolist()
    return distance(torch.stack([dense[teacher][at] for at, teacher in enumerate(best)])).sum()


@pytest.mark.parametrize("ensemble", ["sum", "averaged_logits", "select_teacher"])
@pytest.mark.parametrize("form", ["hidden", "full"])
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, name=st.sampled_from(sorted(DIVERGENCES)), temperature=st.sampled_from([1.0, 3.0]), pieces=PIECES)
def test_teachers_together_are_what_the_formula_says(ensemble, form, seed, name, temperature, pieces) -> None:
    staff, shares = Staff(seed), (0.5, 0.3, 0.2)
    mix = Mix(1.0, temperature, name, CHOSEN, ensemble=ensemble)
    sums = staff.loss([staff.side(at, form, temperature, share) for at, share in enumerate(shares)], mix, pieces)
    plain = plain_ensemble(staff, shares, mix)
    torch.testing.assert_close(sums.divergence, plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        staff.gradients(sums.total), staff.gradients(temperature**2 * plain), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("ensemble", ["sum", "averaged_logits", "select_teacher"])
def test_one_teacher_twice_is_that_teacher(ensemble) -> None:
    staff, mix = Staff(3), Mix(0.6, 2.0, "reverse_kl", ensemble=ensemble)
    twice = staff.loss([staff.side(0, "full", 2.0, share) for share in (0.25, 0.75)], mix)
    once = staff.loss([staff.side(0, "full", 2.0)], mix)
    torch.testing.assert_close(twice.total, once.total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(staff.gradients(twice.total), staff.gradients(once.total), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kd_ratio", [1.0, 0.7])
@settings(deadline=None, max_examples=8)
@given(seed=SEEDS, temperature=st.floats(0.5, 8))
def test_the_loss_is_t_squared_times_the_divergence_beside_the_labels(name, kd_ratio, seed, temperature) -> None:
    staff, mix = Staff(seed), Mix(kd_ratio, temperature, name, CHOSEN)
    sums = staff.loss([staff.side(0, "full", temperature)], mix)
    student, teacher = staff.student(), staff.teachers[0][:, :TOKENS]
    soft = PLAIN[name]((teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1), CHOSEN).sum()
    hard = torch.nn.functional.cross_entropy(student, staff.labels, reduction="sum")
    plain = kd_ratio * temperature**2 * soft + (1 - kd_ratio) * hard
    torch.testing.assert_close(sums.total, plain, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(staff.gradients(sums.total), staff.gradients(plain), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_padded_rows_of_either_side_change_nothing(name: str, form: str) -> None:
    staff, mix = Staff(4), Mix(0.8, 2.0, name, CHOSEN)
    before = staff.loss([staff.side(0, form, 2.0)], mix)
    gradients = staff.gradients(before.total)
    with torch.no_grad():
        staff.weight[TOKENS:] += 50.0
        staff.teachers[0][:, TOKENS:] += 50.0
    after = staff.loss([staff.side(0, form, 2.0)], mix)
    assert torch.equal(after.total, before.total)
    assert all(torch.equal(one, other) for one, other in zip(staff.gradients(after.total), gradients, strict=True))
    assert not gradients[1][TOKENS:].any()


@pytest.mark.parametrize("head", [{"scale": 0.25}, {"softcap": 3.0}, {"scale": 2.0, "softcap": 1.5}])
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, pieces=PIECES, name=st.sampled_from(sorted(DIVERGENCES)))
def test_heads_that_scale_or_cap_are_differentiated_through(head, seed, pieces, name) -> None:
    staff, mix = Staff(seed), Mix(0.7, 2.0, name, CHOSEN)
    bias = torch.randn(TOKENS + 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    capped = Head(staff.weight, bias, **head)
    teacher = HiddenAnswer(staff.teachers[0], Head(torch.eye(TOKENS + 2, dtype=torch.float64), **head))
    sums = distillation_loss(
        staff.hidden, capped, staff.labels, [TeacherSide(teacher)], mix, num_tokens=TOKENS, pieces=pieces
    )

    def transformed(product: Tensor) -> Tensor:
        scaled = product * head.get("scale", 1.0)
        cap = head.get("softcap")
        return scaled if cap is None else cap * torch.tanh(scaled / cap)

    student = transformed(staff.hidden @ staff.weight.T + bias)[:, :TOKENS]
    theirs = transformed(staff.teachers[0])[:, :TOKENS]
    soft = PLAIN[name]((theirs / 2).log_softmax(dim=1), (student / 2).log_softmax(dim=1), CHOSEN).sum()
    plain = 0.7 * 4 * soft + 0.3 * torch.nn.functional.cross_entropy(student, staff.labels, reduction="sum")
    torch.testing.assert_close(sums.total, plain, rtol=1e-9, atol=1e-10)
    leaves = (staff.hidden, staff.weight, bias)
    torch.testing.assert_close(
        torch.autograd.grad(sums.total, leaves), torch.autograd.grad(plain, leaves), rtol=1e-7, atol=1e-9
    )
