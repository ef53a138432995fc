"""How learning speaks to whoever runs it: progress, events, lines of talk, and the wish to stop.

The control plane's driver, Ray Train's workers and the tests each bring their own; learning knows none of them.
"""

from __future__ import annotations

from typing import Protocol

from trainer.errors import TrainerError


class Stopped(TrainerError):
    """The run was asked to stop, saved a checkpoint, and did."""


class Listener(Protocol):
    """What a run tells its surroundings. Rank 0 speaks for progress; every rank may log."""

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        """`step` of `total` in a stage ("student", "baseline", "label", "evaluate student", ...); figures by name."""

    def event(self, reason: str, message: str) -> None:
        """Something worth keeping happened; `reason` is UPPER_SNAKE."""

    def log(self, line: str) -> None:
        """One line for people."""

    def should_stop(self) -> bool:
        """True when the run was asked to stop; it then saves a checkpoint and raises `Stopped`."""


class Silent:
    """Hears nothing and never stops: for tests and for learning by hand."""

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None: ...

    def event(self, reason: str, message: str) -> None: ...

    def log(self, line: str) -> None: ...

    def should_stop(self) -> bool:
        return False
