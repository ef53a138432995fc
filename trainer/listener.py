"""How learning speaks to whoever runs it: progress, events, and the wish to stop.

The control plane's driver, Ray Train's workers and the tests each bring their own; learning knows none of them.
"""

from __future__ import annotations

from typing import Protocol

from trainer.errors import TrainerError


class Stopped(TrainerError):
    """The run was asked to stop, and did where the next attempt can go on."""


class Listener(Protocol):
    """What a run tells its surroundings. Rank 0 speaks for progress."""

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None:
        """`step` of `total` in a stage ("student", "baseline", "label", "evaluate student", ...); figures by name.

        NaN is a figure that is not known yet.
        """

    def event(self, reason: str, message: str) -> None:
        """Something worth keeping happened; `reason` is UPPER_SNAKE."""

    def should_stop(self) -> bool:
        """True when the run shall stop: it saves a checkpoint (or the labels written so far) and raises `Stopped`."""


def stop_if_asked(listener: Listener, doing: str) -> None:
    """Between two pieces of work of which nothing is lost; raises Stopped."""
    if listener.should_stop():
        raise Stopped("STOPPED", f"asked to stop while {doing}")


class Silent:
    """Hears nothing and never stops: for tests and for learning by hand."""

    def progress(self, stage: str, step: int, total: int, **figures: float) -> None: ...

    def event(self, reason: str, message: str) -> None: ...

    def should_stop(self) -> bool:
        return False
