"""One learner's lessons: what it asks the teachers of its job for with every batch, settled once before the first.

Joins the teachers (`faculty.py`), the form of their answers (`payload.py`) and what the objective reads of them. Where
answers are computed, and how many are asked for ahead, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.batch import Batch
from trainer.device import compute_device
from trainer.faculty import Answered, Faculty
from trainer.head import Head
from trainer.matches import Match, match_objectives, teacher_taps
from trainer.payload import choose_payload
from trainer.peers import Peers
from trainer.spec import DistillSpec
from trainer.wanted import Shape, Wanted


@dataclass(frozen=True)
class Teaching:
    """What `request` asks for."""

    faculty: Faculty
    wanted: Wanted
    heads: tuple[Head | None, ...]
    matches: tuple[Match, ...]
    why: str
    """One sentence about the form of the answers, for people."""
    loaded_whole: tuple[str, ...] = ()
    """One sentence for each teacher whose shards could not read their own slices alone."""

    @classmethod
    def settle(cls, spec: DistillSpec, faculty: Faculty, sample: Batch, student: Shape, peers: Peers) -> Teaching:
        """`sample` holds real samples, on which each teacher's head is tried. Every worker settles alike."""
        facts = faculty.facts(sample)
        first = facts[faculty.places[0]].shape
        matches = match_objectives(spec.objective.intermediate_matches, first, student, peers, spec.training.seed)
        wanted, why = choose_payload(spec, facts, faculty.places, teacher_taps(matches))
        device, needed = compute_device(), wanted.payload == "hidden_states"
        heads = tuple(teacher.head().to(device) if needed else None for teacher in faculty.teachers)
        whole = tuple(one.loaded_whole for one in facts if one.loaded_whole is not None)
        return cls(faculty, wanted, heads, tuple(matches), why, whole)

    def request(self, batch: Batch) -> Callable[[], list[Answered]]:
        """Starts the work; the returned function waits for the answers, and puts them where the student computes."""
        answers = self.faculty.request(batch, self.wanted, self.heads)
        return lambda: [answered.to(compute_device()) for answered in answers()]
