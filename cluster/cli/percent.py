"""Shares as people write them on the command line: 5%, 12.5%; on the wire they are numbers from 0 to 1."""

from __future__ import annotations

import math

import typer


def share(text: str) -> float:
    """Of the whole. A number without a % is one of percent too, where it can mean nothing else."""
    number, is_plain = text.strip().removesuffix("%").strip(), not text.strip().endswith("%")
    try:
        percent = float(number)
    except ValueError:
        percent = math.nan
    if not 0 <= percent <= 100:
        raise typer.BadParameter(f"{text!r} is no share; write one from 0% to 100%")
    if is_plain and 0 < percent <= 1:
        raise typer.BadParameter(f"{text!r} could mean {percent:g}% or {100 * percent:g}%; write the one with its %")
    return percent / 100


def percent(share: float) -> str:
    """0.05 -> 5%."""
    return f"{100 * share:.4g}%"


def basis_points(share: float) -> int:
    return round(share * 10_000)
