"""The one loop that moves jobs: looks at what is stored and at what is there, and makes the next step of each.

Level-triggered and idempotent: nothing that it remembers between two rounds matters, so it may be killed between any
two lines and started again. What to do is decided in policy.py; here it is only done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar, assert_never

import structlog

from cluster import attempt_files, changes, policy
from cluster.admission import Admission
from cluster.capacity import Resources
from cluster.errors import ClusterError, Conflict, RayRefused, RayUnreachable
from cluster.ids import hash_token, new_lease_token
from cluster.launcher import INSTALLATION, Launcher, RayJob, Submission
from cluster.lifecycle import State
from cluster.metrics import Metrics
from cluster.policy import Decision, Release, Sight, Step, Stop, Submit, View, Wait
from cluster.registry import resolve
from cluster.replicas import Replicas
from cluster.settings import Settings
from cluster.store.records import Change, StoredAttempt, StoredJob, Terminal
from cluster.store.store import Store
from cluster.wakeup import WakeUp
from cluster.wire import clean

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_STEPS_PER_ROUND = 8
_TENDED_AT_ONCE = 16


@dataclass
class RayStatus:
    """What was last seen of Ray; read by whoever wants to know."""

    reachable: bool = False
    version: str = ""
    words: str = ""


class Reconciler:
    """Acts for all jobs of one store."""

    def __init__(self, settings: Settings, store: Store, launcher: Launcher, replicas: Replicas) -> None:
        self.ray = RayStatus()
        self.metrics = Metrics()
        self._settings = settings
        self._store = store
        self.launcher = launcher
        self.replicas = replicas
        self._admission = Admission(settings.scheduling, store)
        self._listening_since_us = store.now_us()
        self._turns = asyncio.Semaphore(_TENDED_AT_ONCE)

    async def run(self, wake_up: WakeUp) -> None:
        await wake_up.rounds(self._measured_round, self._settings.reconcile_interval_s)

    async def _measured_round(self) -> None:
        with self.metrics.round():
            await self.round()

    async def round(self) -> None:
        """One look at everything. A job that cannot be helped now does not keep the others waiting."""
        try:
            await self.replicas.beat()
            await self._look_at_ray()
            jobs = {job.uid: job for job in await self._do(self._store.to_tend)}
            jobs |= {job.uid: job for job in await self._admit(jobs.values())}
        except (ClusterError, OSError) as error:
            log.warning("round.failed", error=str(error))
            return
        except Exception as error:  # as at the process boundary: recorded, and tried again
            log.error("round.crashed", exc_info=error)
            return
        mine = [job for job in jobs.values() if self.replicas.tends(job.uid)]
        await asyncio.gather(*(self._tend_in_turn(job) for job in mine))

    async def _tend_in_turn(self, job: StoredJob) -> None:
        """One job that Ray is slow to answer about keeps few others waiting."""
        async with self._turns:
            with structlog.contextvars.bound_contextvars(job=job.uid, attempt=len(job.attempts)):
                await self._tend(job)

    async def _look_at_ray(self) -> None:
        was_reachable = self.ray.reachable
        try:
            self.ray.version = await self.launcher.version()
            self.ray.reachable, self.ray.words = True, ""
        except RayUnreachable as error:
            self.ray.reachable, self.ray.words = False, error.message
        if was_reachable != self.ray.reachable:
            log.info("ray.seen" if self.ray.reachable else "ray.unreachable", words=self.ray.words)

    async def _admit(self, jobs: Iterable[StoredJob]) -> list[StoredJob]:
        """One decision of the scheduler, if it could be another than the last; the jobs that it moved, as they are now.

        One that changes meanwhile is decided on anew in the next round.
        """
        if not self.replicas.leads:  # what another one said meanwhile is not known here
            self._admission = Admission(self._settings.scheduling, self._store)
            return []
        holding = [job for job in jobs if job.may_hold]
        if not await self._do(self._admission.is_due, holding, ray_is_seen=self.ray.reachable):
            return []
        nodes, moved = await self._nodes(), []
        with self.metrics.decision():
            decided = await self._do(self._admission.round, nodes, holding)
        for job, change in decided:
            try:
                moved.append(await self._step(job, change))
            except Conflict:
                self._admission.again()
                log.debug("job.changed_meanwhile", job=job.uid)
        return moved

    async def _nodes(self) -> list[Resources] | None:
        """What each node has; None: that cannot be seen."""
        if not self.ray.reachable:
            return None
        try:
            return [node.total for node in await self.launcher.nodes() if node.is_alive]
        except RayUnreachable as error:
            log.warning("ray.nodes_unseen", error=error.message)
            return None

    async def _tend(self, job: StoredJob) -> None:
        """Make the steps of one job that can be made now. What goes wrong with it is noted on it, and stays there."""
        try:
            job = await self._advance(job)
            await self._note(job, changes.unblocked(job, self._store.now_us()))
        except Conflict:
            log.debug("job.changed_meanwhile")
        except ClusterError as error:
            log.warning("job.not_tended", error=str(error))
        except OSError as error:
            log.warning("job.storage_unavailable", error=str(error))
            await self._block(job, "STORAGE_UNAVAILABLE", f"the storage cannot be used: {error}; it is tried again")
        except Exception as error:  # as at the process boundary: recorded, and tried again
            log.error("job.crashed", exc_info=error)
            words = f"the control plane failed on this job, its log says where: {type(error).__name__}: {error}"
            await self._block(job, "INTERNAL", words)

    async def _advance(self, job: StoredJob) -> StoredJob:
        for _ in range(_STEPS_PER_ROUND):
            sight = await self._see(job)
            job = await self._note_condition(job, sight)
            decision = policy.decide(job, sight, self._settings)
            moved = await self._act(job, decision)
            if moved is None:
                break
            job = moved
        return job

    async def _block(self, job: StoredJob, reason: str, message: str) -> None:
        """Note what keeps a job from going on, on the job as it is now."""
        try:
            job = await self._do(self._store.get_job, job.uid)
            await self._note(job, changes.blocked(job, reason, clean(message), self._store.now_us()))
        except Exception as error:  # as at the process boundary: there is nothing left to tell it to
            log.error("job.not_noted", exc_info=error)

    async def _see(self, job: StoredJob) -> Sight:
        """Ask Ray first and look for the record second: when Ray says ENDED, the record is there or will never be."""
        attempt = job.last_attempt
        if attempt is None or attempt.released:
            seen = RayJob(View.UNKNOWN if self.ray.reachable else View.UNREACHABLE, self.ray.words)
            return self._sight(seen)
        seen = await self._look(attempt)
        terminal = None
        if attempt.is_open:
            terminal = await self._do(attempt_files.read_terminal, self._settings, job, attempt)
        return self._sight(seen, terminal)

    def _sight(self, seen: RayJob, terminal: Terminal | None = None) -> Sight:
        since_us = max(self._listening_since_us, self.replicas.changed_us)
        return Sight(self._store.now_us(), seen.view, seen.words, terminal, since_us)

    async def _look(self, attempt: StoredAttempt) -> RayJob:
        if not self.ray.reachable:
            return RayJob(View.UNREACHABLE, self.ray.words)
        if attempt.submit_time_us is None:
            return RayJob(View.UNKNOWN)
        try:
            return await self.launcher.look(attempt.ray_job_id)
        except RayUnreachable as error:
            return RayJob(View.UNREACHABLE, error.message)

    async def _note_condition(self, job: StoredJob, sight: Sight) -> StoredJob:
        is_at_rest = job.is_terminal or job.state is State.QUEUED
        change = None if is_at_rest else policy.condition_change(job, sight, self._settings)
        return await self._note(job, change)

    async def _note(self, job: StoredJob, change: Change | None) -> StoredJob:
        return await self._step(job, change) if change else job

    async def _act(self, job: StoredJob, decision: Decision) -> StoredJob | None:
        """Do what was decided; the job as it is then, or None when there is nothing more to do in this round."""
        match decision:
            case Wait():
                return None
            case Step(change):
                return await self._step(job, change)
            case Submit():
                return await self._submit(job)
            case Stop(then):
                await self.launcher.stop(_last(job).ray_job_id)
                log.info("ray.stop_asked")
                return await self._step(job, then) if then else None
            case Release():
                await self._do(self._store.mark_attempt, job, released=True)
                return await self._do(self._store.get_job, job.uid)
            case _:
                assert_never(decision)

    async def _step(self, job: StoredJob, change: Change) -> StoredJob:
        moved = await self._do(self._store.transition, job, change)
        ids = {"job": job.uid, "attempt": len(moved.attempts)}
        log.info("job.step", **ids, state=moved.state, reason=change.reason, message=change.message)
        return moved

    async def _submit(self, job: StoredJob) -> StoredJob:
        """Before Ray hears of it, all that the driver needs is on disk and the store knows that Ray was asked."""
        path = await self._do(self._prepare, job)
        attempt = _last(job)
        submission = Submission(
            attempt.ray_job_id,
            attempt_files.entrypoint(self._settings, path),
            metadata={"job": job.name, "kind": job.kind, INSTALLATION: await self._do(self._store.installation_id)},
            env=self._settings.driver_env,
        )
        try:
            await self.launcher.submit(submission)
        except RayRefused as error:
            return await self._step(job, changes.refused(job, error.message, self._store.now_us()))
        return await self._step(job, changes.started(job, self._store.now_us()))

    def _prepare(self, job: StoredJob) -> Path:
        """Write attempt.json, with the token that an earlier try left, if it left one."""
        attempt = _last(job)
        token = attempt_files.stored_token(self._settings, attempt) or new_lease_token()
        models = {text: resolve(self._store, pinned) for text, pinned in job.resolved_models.items()}
        document = attempt_files.attempt_document(self._settings, job, models, token, self.replicas.addresses)
        now_us = self._store.now_us()
        self._store.mark_attempt(job, lease_token_sha256=hash_token(token), submit_time_us=now_us)
        return attempt_files.write_attempt(self._settings, attempt, document)

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(call, *args, **kwargs)


def _last(job: StoredJob) -> StoredAttempt:
    attempts: Sequence[StoredAttempt] = job.attempts
    assert attempts, "only a job with an attempt is submitted or stopped"
    return attempts[-1]
