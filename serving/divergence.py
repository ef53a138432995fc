"""How far a student's distribution is from its teacher's: over tokens, where only the most likely of both are known,
and over labels, which are all known.

Pure. T: positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from serving.engine import TokenLogprob

_FLOOR = 1e-12


def mean_divergence(teacher_T: Sequence[TokenLogprob], student_T: Sequence[TokenLogprob]) -> float:
    """Mean over positions of `partial_kl`, in nats per token."""
    pairs = zip(teacher_T, student_T, strict=True)
    return sum(partial_kl(teacher, student) for teacher, student in pairs) / len(teacher_T)


def agreement(teacher_T: Sequence[TokenLogprob], student_T: Sequence[TokenLogprob]) -> float:
    """Share of positions at which both find the same token the most likely."""
    pairs = zip(teacher_T, student_T, strict=True)
    return sum(teacher.top[0][0] == student.top[0][0] for teacher, student in pairs) / len(teacher_T)


def partial_kl(at_teacher: TokenLogprob, at_student: TokenLogprob) -> float:
    """The least KL(teacher || student) at one position that fits what is known of both.

    Tokens that both name are cells of their own. Those that the teacher alone names are one cell, all others another.
    Merging cells never makes a divergence larger (data processing inequality), and of the mass that the student has
    left, the cell of unnamed tokens gets what makes it least: as much as the teacher gives it, but no token more than
    the least likely one of the student's best: the token that came is named too, however unlikely it was.
    """
    teacher, student = _known(at_teacher), _known(at_student)
    both = teacher.keys() & student.keys()
    alone = teacher.keys() - both
    total = sum(_term(math.exp(teacher[token]), math.exp(student[token])) for token in both)
    rest = max(1.0 - sum(math.exp(student[token]) for token in both), _FLOOR)
    p_alone = sum(math.exp(teacher[token]) for token in alone)
    p_tail = max(1.0 - p_alone - sum(math.exp(teacher[token]) for token in both), 0.0)
    most = len(alone) * math.exp(min(logprob for _, logprob in at_student.top))
    wanted = rest * p_alone / (p_alone + p_tail) if p_alone + p_tail > 0 else 0.0
    q_alone = min(most, wanted)
    return max(total + _term(p_alone, q_alone) + _term(p_tail, rest - q_alone), 0.0)


def label_divergence(teacher: Mapping[str, float], student: Mapping[str, float], *, exclusive: bool) -> float:
    """KL(teacher || student) over the labels of one text, in nats; where each label stands alone, the sum over them."""
    if exclusive:
        return max(sum(_term(p, student.get(label, 0.0)) for label, p in teacher.items()), 0.0)
    pairs = [(p, student.get(label, 0.0)) for label, p in teacher.items()]
    return max(sum(_term(p, q) + _term(1 - p, 1 - q) for p, q in pairs), 0.0)


def label_agreement(teacher: Mapping[str, float], student: Mapping[str, float], *, exclusive: bool) -> float:
    """Whether both find the same label the likeliest; where each stands alone, the share on which both say the same."""
    if exclusive:
        return float(max(teacher, key=teacher.__getitem__) == max(student, key=student.__getitem__))
    same = sum((p > 0.5) == (student.get(label, 0.0) > 0.5) for label, p in teacher.items())
    return same / len(teacher)


def _term(p: float, q: float) -> float:
    return p * math.log(p / max(q, _FLOOR)) if p > 0 else 0.0


def _known(position: TokenLogprob) -> dict[int, float]:
    """The most likely tokens, and the one that came."""
    return {**dict(position.top), position.token_id: position.logprob}
