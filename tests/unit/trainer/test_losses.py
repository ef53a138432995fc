"""The losses against values known beforehand, against float64 autograd, and against what must always hold (I3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.answers import HiddenAnswer, LogitsAnswer, Mix, Opened, TeacherSide, topk_answer
from trainer.divergences import DIVERGENCES
from trainer.head import Head
from trainer.losses import LossSums, Pieces, distillation_loss, label_losses, mixed_terms

TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, -1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.0, 1.0, 1.0], [0.5, 0.0, 2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])
PIECES = st.builds(Pieces, st.integers(1, 20), st.integers(1, 20))


def plain_loss(student: Tensor, teacher: Tensor, labels: Tensor, mix: Mix) -> Tensor:
    """The same by torch's own functions on the whole logits."""
    soft = F.kl_div(
        F.log_softmax(student / mix.temperature, -1),
        F.log_softmax(teacher / mix.temperature, -1),
        log_target=True,
        reduction="sum",
    )
    hard = F.cross_entropy(student, labels, reduction="sum")
    return mix.kd_ratio * mix.temperature**2 * soft + (1 - mix.kd_ratio) * hard


class Case:
    """Random hidden states and heads of two sides with different widths."""

    def __init__(self, seed: int = 0, *, positions: int = 13, tokens: int = 11, dtype: torch.dtype = torch.float64):
        g = torch.Generator().manual_seed(seed)
        self.tokens = tokens
        self.hidden = torch.randn(positions, 5, generator=g, dtype=dtype).requires_grad_()
        self.weight = torch.randn(tokens + 3, 5, generator=g, dtype=dtype).requires_grad_()
        self.bias = torch.randn(tokens + 3, generator=g, dtype=dtype).requires_grad_()
        self.targets = torch.randint(0, tokens, (positions,), generator=g)
        teacher_head = Head(torch.randn(tokens + 6, 7, generator=g, dtype=dtype))
        self.teacher = HiddenAnswer(torch.randn(positions, 7, generator=g, dtype=dtype), teacher_head)

    def leaves(self) -> tuple[Tensor, ...]:
        return self.hidden, self.weight, self.bias

    def loss(self, mix: Mix, pieces: Pieces | None = None) -> LossSums:
        head = Head(self.weight, self.bias)
        return distillation_loss(
            self.hidden,
            head,
            self.targets,
            [TeacherSide(self.teacher)],
            mix,
            num_tokens=self.tokens,
            pieces=pieces,
        )

    def plain(self, mix: Mix) -> Tensor:
        student = (self.hidden @ self.weight.T + self.bias)[:, : self.tokens]
        teacher = (self.teacher.hidden_MD @ self.teacher.head.weight_VD.T)[:, : self.tokens]
        return plain_loss(student, teacher, self.targets, mix)


@pytest.mark.parametrize(("temperature", "divergence"), [(1.0, 1.1203286915), (2.0, 0.3978266011), (4.0, 0.1081847360)])
def test_forward_kl_has_the_known_values(temperature: float, divergence: float) -> None:
    _, kl_R, _ = mixed_terms(STUDENT, [Opened(TEACHER, 1.0)], LABELS, Mix(1.0, temperature))
    assert kl_R.mean().item() == pytest.approx(divergence, abs=1e-10)


def test_mixed_loss_has_the_known_value() -> None:
    mix = Mix(kd_ratio=0.7, temperature=2.0)
    head, teacher = Head(torch.eye(3).double()), TeacherSide(HiddenAnswer(TEACHER, Head(torch.eye(3).double())))
    sums = distillation_loss(STUDENT, head, LABELS, [teacher], mix, num_tokens=3)
    assert sums.total.item() / 2 == pytest.approx(1.6246596832, abs=1e-10)
    assert sums.cross_entropy.item() / 2 == pytest.approx(1.7024840004, abs=1e-10)


def test_high_temperature_approaches_squared_distance_of_logits() -> None:
    _, kl_R, _ = mixed_terms(STUDENT, [Opened(TEACHER, 1.0)], LABELS, Mix(1.0, 1000.0))
    assert kl_R.mean().item() * 1000**2 == pytest.approx(1.68113, abs=1e-5)


def test_gradient_of_the_divergence_is_t_times_the_difference_of_probabilities() -> None:
    _, _, gradient = mixed_terms(STUDENT, [Opened(TEACHER, 1.0)], LABELS, Mix(1.0, 2.0))
    expected = 2 * (torch.softmax(STUDENT / 2, -1) - torch.softmax(TEACHER / 2, -1))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("mix", [Mix(0.0, 1.0), Mix(1.0, 1.0), Mix(0.9, 2.0), Mix(0.3, 0.5)])
@pytest.mark.parametrize("pieces", [Pieces(1, 1), Pieces(5, 2), None])
def test_value_and_gradients_equal_autograd_in_float64(mix: Mix, pieces: Pieces | None) -> None:
    case = Case()
    sums, plain = case.loss(mix, pieces), case.plain(mix)
    torch.testing.assert_close(sums.total, plain, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(sums.total * 0.25, case.leaves())
    theirs = torch.autograd.grad(plain * 0.25, case.leaves())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), pieces=PIECES, kd_ratio=st.floats(0, 1), temperature=st.floats(0.2, 8))
def test_chunk_size_changes_nothing_and_the_divergence_is_not_negative(
    seed: int, pieces: Pieces, kd_ratio: float, temperature: float
) -> None:
    case, mix = Case(seed), Mix(kd_ratio, temperature)
    chunked, whole = case.loss(mix, pieces), case.loss(mix, Pieces(99, 99))
    torch.testing.assert_close(chunked.total, whole.total, rtol=1e-11, atol=1e-11)
    assert whole.divergence.item() >= -1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    case = Case(dtype=dtype)
    case.teacher = HiddenAnswer(case.hidden.detach(), Head(case.weight.detach(), case.bias.detach()))
    sums = case.loss(Mix(1.0, 2.0), Pieces(6, 3))
    assert sums.total.item() == 0.0
    assert all(not gradient.any() for gradient in torch.autograd.grad(sums.total, case.leaves()))


def test_padded_rows_of_either_head_get_no_mass_and_no_gradient() -> None:
    case, mix = Case(), Mix(0.5, 2.0)
    before = case.loss(mix).total.item()
    with torch.no_grad():
        case.weight[case.tokens :] += 100.0
        case.teacher.head.weight_VD[case.tokens :] -= 100.0
    sums = case.loss(mix)
    assert sums.total.item() == before
    gradient = torch.autograd.grad(sums.total, case.weight)[0]
    assert not gradient[case.tokens :].any()
    assert gradient[: case.tokens].any()


def test_no_positions_give_zero_and_a_gradient_that_reaches_everything() -> None:
    case = Case(positions=0)
    sums = case.loss(Mix(0.5, 1.0))
    gradients = torch.autograd.grad(sums.total, case.leaves())
    assert sums.total.item() == 0.0
    assert [tuple(gradient.shape) for gradient in gradients] == [(0, 5), (14, 5), (14,)]


def test_bfloat16_stays_near_float64() -> None:
    exact, rough = Case(positions=64), Case(positions=64, dtype=torch.bfloat16)
    for source, target in zip(exact.leaves(), rough.leaves(), strict=True):
        target.data = source.detach().bfloat16()
        source.data = target.detach().double()
    teacher = HiddenAnswer(exact.hidden.detach() * 0.5, Head(exact.weight.detach()))
    rough.teacher = HiddenAnswer(teacher.hidden_MD.bfloat16(), Head(teacher.head.weight_VD.bfloat16()))
    exact.teacher, rough.targets = teacher, exact.targets
    mix = Mix(0.5, 2.0)
    total = rough.loss(mix, Pieces(20, 9)).total
    torch.testing.assert_close(total, exact.loss(mix).total, rtol=2e-2, atol=0.0, check_dtype=False)
    assert torch.autograd.grad(total, rough.weight)[0].dtype == torch.bfloat16


class Largest(TorchDispatchMode):
    """Remembers the most elements that any result of an operation has had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            self.elements = max(self.elements, one.numel() if isinstance(one, Tensor) else 0)
        return found


@pytest.mark.parametrize("payload", ["hidden", "top", "full"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_buffer_grows_with_positions_times_vocabulary(divergence: str, payload: str) -> None:
    """Forward and backward: nothing is larger than a block of rows, and four times the positions change nothing."""
    pieces, tokens, largest = Pieces(8, 2), 300, []
    for positions in (64, 256):
        case = Case(positions=positions, tokens=tokens)
        side: TeacherSide = TeacherSide(case.teacher)
        if payload != "hidden":
            logits = case.teacher.head.logits_RV(case.teacher.hidden_MD)[:, :tokens].clone()
            side = TeacherSide(LogitsAnswer(logits) if payload == "full" else topk_answer(logits, 5, 1.0))
        with Largest() as seen:
            mix = Mix(0.5, 1.0, divergence)
            head = Head(case.weight, case.bias)
            sums = distillation_loss(case.hidden, head, case.targets, [side], mix, num_tokens=tokens, pieces=pieces)
            torch.autograd.grad(sums.total, case.leaves())
        largest.append(seen.elements)
    assert largest == [8 * tokens] * 2


def test_token_losses_are_the_cross_entropy_of_each_position() -> None:
    case = Case()
    logits = (case.hidden @ case.weight.T + case.bias)[:, :11]
    torch.testing.assert_close(
        label_losses(logits, case.targets), F.cross_entropy(logits, case.targets, reduction="none")
    )
