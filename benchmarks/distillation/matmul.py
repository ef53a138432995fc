"""The ceiling: how long each of a step's matrix products takes by itself, in bfloat16, in the layout the step has."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.distillation.step import STUDENT, TEACHER, TOKENS, Product, products

_LEAST_S, _LEAST_TIMES = 0.2, 7


def main() -> None:
    torch.manual_seed(0)
    seconds = {one.name: seconds_of(one) for one in products(TEACHER, STUDENT, TOKENS)}
    print(json.dumps({"seconds": seconds}))


def seconds_of(product: Product) -> float:
    """The median of many."""
    work, times = _work(product), list[float]()
    work()
    work()
    while len(times) < _LEAST_TIMES or sum(times) < _LEAST_S:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _work(product: Product) -> Callable[[], Tensor]:
    """Into memory that is there already: fresh pages for a large result would cost more than the product."""
    given = torch.randn(product.rows, product.inputs).bfloat16()
    gradient = torch.randn(product.rows, product.outputs).bfloat16()
    weight = torch.randn(product.outputs, product.inputs).bfloat16()
    factors = {"forward": (given, weight.T), "input": (gradient, weight), "weight": (gradient.T, given)}
    left, right = factors[product.kind]
    result = torch.empty(left.shape[0], right.shape[1], dtype=torch.bfloat16)
    return lambda: torch.mm(left, right, out=result)


if __name__ == "__main__":
    main()
