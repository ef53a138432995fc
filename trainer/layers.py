"""Which layers of teacher and student go together. Loads no torch: a job is told when it is submitted."""

from __future__ import annotations

from trainer.errors import UserError
from trainer.objective_spec import MatchSpec

Pair = tuple[int, int]
"""Teacher layer, student layer."""


def layer_pairs(match: MatchSpec, teacher_layers: int, student_layers: int) -> tuple[Pair, ...]:
    """Of two models with so many layers; UserError if one is not there."""
    if wrong := unmatched(match, teacher_layers, student_layers):
        raise UserError("LAYERS_UNMATCHED", f"objective.intermediate_matches.{': '.join(wrong)}")
    if match.layers is not None:
        return match.layers
    if match.layer_mapping == "last":
        return ((teacher_layers, student_layers),)
    return tuple((max(1, m * teacher_layers // student_layers), m) for m in range(1, student_layers + 1))


def unmatched(match: MatchSpec, teacher_layers: int, student_layers: int) -> tuple[str, str] | None:
    """The field that asks for what is not there, and a sentence about it."""
    has = f"the teacher has {teacher_layers} layers and the student {student_layers}"
    beyond = [pair for pair in match.layers or () if pair[0] > teacher_layers or pair[1] > student_layers]
    if beyond:
        return "layers", f"there is no pair {list(beyond[0])}: {has}; name layers that are there"
    if match.layers is None and match.layer_mapping == "all" and teacher_layers != student_layers:
        mend = "use uniform or last, or name pairs in layers"
        return "layer_mapping", f"all needs as many layers on both sides, but {has}; {mend}"
    return None
