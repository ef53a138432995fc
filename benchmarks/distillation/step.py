"""The arithmetic of one distillation step: its FLOPs, its matrix products, and the speed at which they alone would run.

Parameters are counted as they are multiplied: every linear weight and the head, not the embedding's lookup (with tied
weights the head is counted once). A token costs 2 FLOPs for each teacher parameter (forward) and 6 for each student
parameter (forward, and backward for inputs and weights). Attention's own products are left out. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ROWS, LENGTH = 8, 220
TOKENS = ROWS * LENGTH


@dataclass(frozen=True)
class Shape:
    """A Llama of full attention heads and a tied head."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int = 16_384

    @property
    def num_multiplied(self) -> int:
        """Parameters that take part in matrix products."""
        return sum(inputs * outputs * count for inputs, outputs, count in self.linears())

    def linears(self) -> Iterator[tuple[int, int, int]]:
        """(inputs, outputs, how many of them)."""
        size, layers = self.hidden_size, self.num_hidden_layers
        yield size, size, 4 * layers
        yield size, self.intermediate_size, 2 * layers
        yield self.intermediate_size, size, layers
        yield size, self.vocab_size, 1


TEACHER = Shape(512, 1344, 8, 8)
STUDENT = Shape(256, 576, 4, 4)


@dataclass(frozen=True)
class Product:
    """`count` products of `kind` for a linear of so many inputs and outputs, over `rows` positions.

    forward: X[rows, inputs] W^T; input: G[rows, outputs] W; weight: G^T X.
    """

    kind: str
    rows: int
    inputs: int
    outputs: int
    count: int

    @property
    def flops(self) -> int:
        """Of all of them."""
        return 2 * self.rows * self.inputs * self.outputs * self.count

    @property
    def name(self) -> str:
        return f"{self.kind} {self.rows}x{self.inputs}x{self.outputs}"


def products(teacher: Shape | None, student: Shape, rows: int) -> list[Product]:
    """All that one step has to multiply; without a teacher, that of a supervised step."""
    read = [] if teacher is None else [("forward", linear) for linear in teacher.linears()]
    learned = [(kind, linear) for kind in ("forward", "input", "weight") for linear in student.linears()]
    return [Product(kind, rows, *linear) for kind, linear in [*read, *learned]]


def flops_per_token(teacher: Shape | None, student: Shape) -> int:
    """2 P_T + 6 P_S."""
    return 6 * student.num_multiplied + (2 * teacher.num_multiplied if teacher else 0)


def gemm_rate(step: list[Product], seconds: Mapping[str, float]) -> float:
    """FLOP/s at which the products of a step run one after the other; `seconds` is that of one product by name."""
    return sum(one.flops for one in step) / sum(one.count * seconds[one.name] for one in step)


def ceiling_share(tokens_per_s: float, flops: int, rate: float) -> float:
    """Which part of the time the products alone would take."""
    return tokens_per_s * flops / rate


def price_bound(teacher: Shape, student: Shape) -> float:
    """A taught step over a supervised one, if the teacher cost its own FLOPs and 5 % more."""
    return 1.05 + 2 * teacher.num_multiplied / (6 * student.num_multiplied)
