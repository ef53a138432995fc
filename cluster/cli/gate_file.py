"""A gate as people write it, read: YAML with the names of `athanor.v1.CanaryGate`, shares in percent, spans as 24h."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
import yaml
from athanor.v1 import deployment_service_pb2

from cluster.cli import spans
from cluster.cli.percent import basis_points, share

_SHARES = ("mirror_share", "error_budget", "max_agreement_loss", "max_error_rate", "max_task_loss")
_NUMBERS = ("max_divergence_increase", "max_latency_ratio")
_COUNTS = ("min_observations", "step_requests")
_NAMES = (*("teacher", "task_data"), *_SHARES, *_NUMBERS, *_COUNTS, *("steps", "max_duration"))


def read_gate(path: Path) -> deployment_service_pb2.CanaryGate:
    """With what the file names; the rest is the server's. A path in it is one from where the file lies."""
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint="--gate-file") from error
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{path} is no YAML mapping, e.g. `max_task_loss: 5%`", param_hint="--gate-file")
    gate = deployment_service_pb2.CanaryGate()
    for name, value in document.items():
        try:
            _set(gate, str(name), value, path.absolute().parent)
        except typer.BadParameter as error:
            raise typer.BadParameter(f"{path}: {name}: {error.message}", param_hint="--gate-file") from error
    return gate


def _set(gate: deployment_service_pb2.CanaryGate, name: str, value: Any, folder: Path) -> None:
    if value is None or value == "":
        raise typer.BadParameter("is empty; leave the line out")
    if name == "teacher":
        gate.teacher = _text(value)
    elif name == "task_data":
        gate.task_data = str(folder / Path(_text(value)).expanduser())
    elif name in _SHARES:
        setattr(gate, name, share(str(value)))
    elif name in _NUMBERS:
        setattr(gate, name, float(_number(value)))
    elif name in _COUNTS:
        setattr(gate, name, _whole(value))
    elif name == "steps":
        gate.steps[:] = [basis_points(share(str(each))) for each in _list(value)]
    elif name == "max_duration":
        gate.max_duration.FromTimedelta(_span(value))
    else:
        raise typer.BadParameter(f"is nothing that a gate has; it has {', '.join(_NAMES)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise typer.BadParameter(f"{value!r} is no text; put it in quotes if it is")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise typer.BadParameter(f"{value!r} is no number")
    return value


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise typer.BadParameter(f"{value!r} is no whole number")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise typer.BadParameter(f"{value!r} is no list, e.g. [5, 25, 50]")
    return value


def _span(value: Any) -> Any:
    found = spans.read(str(value))
    if found is None:
        raise typer.BadParameter(f"{value!r} is no span of time, e.g. 30m, 24h, 7d")
    return found
