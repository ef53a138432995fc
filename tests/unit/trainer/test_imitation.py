"""Inner values: known figures, plain formulas, and what must not matter (turning, scale, packing, masked positions)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from trainer.imitation import (
    attention_kl,
    attention_mse,
    hidden_cosine,
    hidden_mse,
    pooled,
    rkd_angle,
    rkd_distance,
    token_similarity,
)

TEACHER = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 0.0]])
STUDENT = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
SEEDS = st.integers(0, 10_000)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turned(rows_SD: Tensor, seed: int) -> Tensor:
    orthogonal, _ = torch.linalg.qr(normal(seed, rows_SD.shape[1], rows_SD.shape[1]).double())
    return (rows_SD.double() @ orthogonal).float()


def test_hidden_states_have_the_known_values() -> None:
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert hidden_cosine(student, teacher).item() / 2 == pytest.approx(0.2)
    assert hidden_mse(F.normalize(student, dim=1), F.normalize(teacher, dim=1)).item() / 2 == pytest.approx(0.2)
    assert hidden_mse(student, teacher).item() == pytest.approx((4 + 16) / 2 + 1 / 2)


def test_relations_have_the_known_values() -> None:
    assert rkd_distance(STUDENT, TEACHER).item() == pytest.approx(0.0279368330, abs=1e-7)
    assert rkd_angle(STUDENT, TEACHER).item() == pytest.approx(0.0175795465, abs=1e-7)


@pytest.mark.parametrize("rounding", [0.0, 1e-7, 1e-3])
def test_the_same_sample_twice_has_no_direction_and_a_bounded_gradient(rounding: float) -> None:
    student, teacher = normal(1, 6, 8), normal(2, 6, 8)
    student[1], teacher[1] = student[0] * (1 + rounding), teacher[0]
    student.requires_grad_()
    gradient = torch.autograd.grad(rkd_angle(student, teacher) * 50, student)[0]
    assert gradient.abs().max() < 1.0
    assert gradient.abs().max() > 0.0


def plain_distances(side: Tensor) -> Tensor:
    apart = (side[:, None] - side[None]).norm(dim=2)
    return apart / apart[apart > 0].mean()


def plain_angles(side: Tensor) -> Tensor:
    directions = F.normalize(side[None] - side[:, None], dim=2)
    return directions @ directions.transpose(1, 2)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, samples=st.integers(2, 7), width=st.integers(4, 8))
def test_relations_and_their_gradients_are_those_of_the_plain_formulas(seed: int, samples: int, width: int) -> None:
    student, teacher = normal(seed, samples, width).double().requires_grad_(), normal(seed + 1, samples, 6).double()
    for ours, plain in ((rkd_distance, plain_distances), (rkd_angle, plain_angles)):
        expected = F.smooth_l1_loss(plain(student), plain(teacher))
        value = ours(student, teacher)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            torch.autograd.grad(value, student)[0], torch.autograd.grad(expected, student)[0], rtol=1e-5, atol=1e-7
        )


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, scale=st.floats(0.05, 50), shift=st.floats(-5, 5))
def test_relations_know_no_place_no_scale_and_no_turning(seed: int, scale: float, shift: float) -> None:
    teacher = normal(seed, 6, 4)
    same = turned(teacher, seed) * scale + shift
    assert rkd_distance(same, teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert rkd_angle(same, teacher).item() == pytest.approx(0.0, abs=1e-6)
    other = normal(seed + 7, 6, 4)
    assert rkd_distance(other, teacher).item() > 1e-4
    assert rkd_angle(other, teacher).item() > 1e-4


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_equal_samples_and_samples_twice_have_finite_gradients(seed: int, dtype: torch.dtype) -> None:
    student = normal(seed, 4, 3).to(dtype)
    student = torch.cat([student, student[:2]]).requires_grad_()
    teacher = normal(seed + 1, 6, 3).to(dtype)
    for relation in (rkd_distance, rkd_angle):
        (gradient,) = torch.autograd.grad(relation(student.float(), teacher.float()), student)
        assert gradient.isfinite().all()
        assert relation(student.float(), student.float()).item() == 0.0


@pytest.mark.parametrize("relation", [rkd_distance, rkd_angle])
@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples_have_no_relation_to_learn(relation, samples: int) -> None:
    student = normal(1, samples, 3).requires_grad_()
    value = relation(student, normal(2, samples, 3))
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def scores(seed: int, heads: int, length: int, seen: Tensor) -> Tensor:
    return normal(seed, len(seen), heads, length).masked_fill(~seen[:, None], -torch.inf)


SEEN = torch.tensor([[True, False, False, False], [True, True, True, False], [False, True, True, True]])


def plain_attention(student: Tensor, teacher: Tensor, *, is_kl: bool) -> float:
    """Position by position over what may be looked at; heads averaged where their numbers differ."""
    total = 0.0
    for s_HT, t_HT, seen in zip(student, teacher, SEEN, strict=True):
        s, t = s_HT[:, seen].double(), t_HT[:, seen].double()
        if is_kl:
            s, t = s.softmax(dim=1), t.softmax(dim=1)
        if len(s) != len(t):
            s, t = s.mean(dim=0, keepdim=True), t.mean(dim=0, keepdim=True)
        apart = (t * (t.log() - s.log())).sum(dim=1).mean() if is_kl else (s - t).square().mean()
        total += apart.item()
    return total


@pytest.mark.parametrize("heads", [(2, 2), (4, 2), (1, 3)])
@pytest.mark.parametrize("is_kl", [True, False])
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS)
def test_attention_is_compared_as_written(heads: tuple[int, int], is_kl: bool, seed: int) -> None:
    student, teacher = scores(seed, heads[0], 4, SEEN), scores(seed + 1, heads[1], 4, SEEN)
    compare = attention_kl if is_kl else attention_mse
    expected = plain_attention(student, teacher, is_kl=is_kl)
    assert compare(student, teacher).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert compare(teacher, teacher).item() == 0.0


@pytest.mark.parametrize("compare", [attention_kl, attention_mse])
@pytest.mark.parametrize("heads", [2, 1])
def test_masked_positions_are_inert(compare, heads: int) -> None:
    """Longer rows (padding, neighbours in the row) change neither value nor gradient."""
    student, teacher = scores(1, 2, 4, SEEN).requires_grad_(), scores(2, heads, 4, SEEN)
    value = compare(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.isfinite().all()
    assert not gradient.transpose(1, 2)[~SEEN].any()
    wider = [F.pad(side.detach(), (3, 2), value=-torch.inf) for side in (student, teacher)]
    wider[0].requires_grad_()
    again = compare(*wider)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(torch.autograd.grad(again, wider[0])[0][:, :, 3:-2], gradient)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_tokens_are_compared_within_their_sample_alone(seed: int, sizes: list[int]) -> None:
    owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    student, teacher = normal(seed, len(owners), 3), normal(seed + 1, len(owners), 5)
    alone = 0.0
    for one in range(len(sizes)):
        s, t = (F.normalize(side[owners == one].double(), dim=1) for side in (student, teacher))
        for row_s, row_t in zip(s @ s.T, t @ t.T, strict=True):
            alone += (row_s - row_t).square().mean().item()
    assert token_similarity(student, teacher, owners).item() == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert token_similarity(turned(student, seed) * 3, student, owners).item() == pytest.approx(0.0, abs=1e-6)


def test_nothing_to_compare_is_nothing_and_reaches_the_student() -> None:
    nothing = torch.zeros(0, 3, requires_grad=True)
    owners = torch.zeros(0, dtype=torch.long)
    for value in (
        token_similarity(nothing, nothing.detach(), owners) + 0.0 * nothing.sum(),
        hidden_mse(nothing, nothing.detach()),
        hidden_cosine(nothing, nothing.detach()),
        attention_mse(nothing[:, None], nothing.detach()[:, None]),
        attention_kl(nothing[:, None], nothing.detach()[:, None]),
    ):
        assert value.item() == 0.0
        assert torch.autograd.grad(value, nothing)[0].shape == (0, 3)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS, counts=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_pooling_is_the_mean_over_learned_positions_and_leaves_out_who_has_none(seed: int, counts: list[int]) -> None:
    owners = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    hidden = normal(seed, len(owners), 3)
    expected = [hidden[owners == one].mean(dim=0) for one in range(len(counts)) if counts[one]]
    found = pooled(hidden, owners, len(counts))
    torch.testing.assert_close(found, torch.stack(expected) if expected else torch.zeros(0, 3))


def test_half_precision_is_compared_in_float32() -> None:
    student, teacher = normal(1, 6, 8).bfloat16(), normal(2, 6, 8).bfloat16()
    owners = torch.tensor([0, 0, 0, 1, 1, 1])
    for compare in (hidden_mse, hidden_cosine):
        assert torch.equal(compare(student, teacher), compare(student.float(), teacher.float()))
    assert torch.equal(
        token_similarity(student, teacher, owners), token_similarity(student.float(), teacher.float(), owners)
    )
    assert pooled(student, owners, 2).dtype == torch.float32
