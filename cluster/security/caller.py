"""Who calls: set once around each RPC, read by whatever handler wants to know what the caller may see.

Knows roles and projects, and nothing of tokens or gRPC.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

from cluster.errors import NotFound, PermissionDenied


class Role(IntEnum):
    """As `athanor.v1.Role`; each may do what the ones before it may."""

    VIEWER = 1
    SUBMITTER = 2
    ADMIN = 3


@dataclass(frozen=True)
class Caller:
    """What one token allows."""

    name: str
    role: Role
    projects: tuple[str, ...] = ()
    """Where; empty: in all projects."""
    token_id: str = ""

    def reaches(self, project: str) -> bool:
        return self.role is Role.ADMIN or not self.projects or project in self.projects

    @property
    def scope(self) -> tuple[str, ...] | None:
        """The projects whose things may be listed; None: all."""
        return None if self.role is Role.ADMIN or not self.projects else self.projects

    def check_sees_job(self, uid: str, project: str) -> None:
        """NotFound / JOB_NOT_FOUND, in the words for a job that is not there: others' jobs are nobody's business."""
        if not self.reaches(project):
            raise NotFound("JOB_NOT_FOUND", f"there is no job {uid!r}; `athanor job list` shows those there are")

    def check_writes_to(self, project: str) -> None:
        """PermissionDenied / PROJECT_NOT_REACHED where a thing is to be made in a project that was named."""
        if not self.reaches(project):
            message = (
                f"the token {self.name!r} does not reach project {project!r}; it reaches {', '.join(self.projects)}"
            )
            raise PermissionDenied("PROJECT_NOT_REACHED", message)


ANYBODY = Caller("", Role.ADMIN)
"""Whoever calls a control plane that asks for no tokens (ATHANOR_AUTH=none, on loopback alone)."""
_CALLER: ContextVar[Caller] = ContextVar("athanor_caller", default=ANYBODY)


def caller() -> Caller:
    """Who made the call that is being handled. Threads that `asyncio.to_thread` starts see it too."""
    return _CALLER.get()


@contextlib.contextmanager
def calling(who: Caller) -> Iterator[None]:
    """`caller()` is `who` while the block lasts."""
    token = _CALLER.set(who)
    try:
        yield
    finally:
        _CALLER.reset(token)


def become(who: Caller) -> None:
    """`caller()` is `who` from here to the end of this task: of a call, whose task ends with it."""
    _CALLER.set(who)
