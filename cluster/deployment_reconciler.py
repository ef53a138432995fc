"""The loop that keeps what is served equal to what is stored, apart from the jobs' loop: Serve may take its time.

Level-triggered like that one, and as quiet where there is nothing to serve. What to do next is rollout.py's part.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import structlog

from cluster.canary import figures
from cluster.deployer import Endpoint, ServeView
from cluster.errors import ClusterError, Conflict, InvalidInput, NotFound, RayError
from cluster.metrics import Metrics
from cluster.registry import resolve
from cluster.rollout import Look, Rules, Seen, Shown, Step, Target, advance
from cluster.rollout_state import is_settled, state_of
from cluster.serve_plan import Plan, Surroundings, application_name, is_judge, judge_name, plan
from cluster.settings import Settings
from cluster.store.deployment_records import DeploymentState, Phase, StoredDeployment
from cluster.store.store import Store
from cluster.trials import begin_trial
from cluster.wakeup import WakeUp

log = structlog.get_logger(__name__)

_DECIDED = frozenset({"CANARY_PROMOTED", "CANARY_ROLLED_BACK"})


class Serving(Protocol):
    """What the control plane needs of Ray Serve."""

    async def ours(self) -> Collection[str]:
        """Names of the applications that this installation has deployed."""

    async def apply(self, plan: Plan, before_write: Callable[[], Awaitable[None]] | None = None) -> ServeView:
        """Make Serve equal to the plan, as far as others leave room, and say what it shows.

        `before_write` is awaited directly before anything is changed, and raises if it shall not be.
        """


@dataclass(frozen=True)
class Told:
    """What is said of a deployment from now on."""

    state: DeploymentState
    message: str
    endpoint: Endpoint
    observed_generation: int


class Patience:
    """Bears an unhealthy application for a time: replicas that die are replaced by Serve itself.

    A judge has one replica alone, so that it is not healthy until another one has loaded the teacher: it has as long
    as a start may take.
    """

    def __init__(self, grace_s: float, judge_grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._grace_s, self._judge_grace_s, self._clock = grace_s, judge_grace_s, clock
        self._since_s: dict[str, float] = {}

    def judge(self, shown: Mapping[str, Seen]) -> dict[str, Seen]:
        """Those that are unhealthy for too long have failed."""
        sick = {name for name, each in shown.items() if each.state is Shown.UNHEALTHY}
        now_s = self._clock()
        self._since_s = {name: self._since_s.get(name, now_s) for name in sick}
        late = {name for name, since_s in self._since_s.items() if now_s - since_s >= self._grace_of(name)}
        return {
            name: replace(each, state=Shown.FAILED, num_running=0) if name in late else each
            for name, each in shown.items()
        }

    def _grace_of(self, application: str) -> float:
        return self._judge_grace_s if is_judge(application) else self._grace_s


def surroundings_of(settings: Settings, control_planes: Iterable[str]) -> Surroundings:
    """What gateways and judges are told of this installation; they show what drivers show."""
    tls_ca = settings.tls_ca or settings.tls_cert
    return Surroundings(
        storage=settings.storage,
        control_planes=tuple(sorted(control_planes)),
        tls_ca=tls_ca.read_text() if tls_ca else None,
        tls_cert=str(settings.tls_driver_cert) if settings.tls_driver_cert else None,
        tls_key=str(settings.tls_driver_key) if settings.tls_driver_key else None,
        auth=settings.auth,
        num_gateways=settings.serve_gateways,
    )


class DeploymentReconciler:
    """Acts for all deployments of one store."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        serving: Serving,
        leads: Callable[[], bool] = lambda: True,
        control_planes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`leads` tells whether this control plane is the one of several that acts; `control_planes` where all are."""
        self._leads = leads
        self._control_planes = control_planes
        self._settings = settings
        self._store = store
        self._serving = serving
        self._rules = Rules(settings.revision_timeout_s, settings.revision_drain_s)
        self._patience = Patience(settings.unhealthy_grace_s, settings.revision_timeout_s)
        self.metrics: Metrics | None = None

    async def run(self, wake_up: WakeUp) -> None:
        await wake_up.rounds(self.round, self._settings.reconcile_interval_s)

    async def round(self) -> None:
        """Bring Serve to the stored deployments, and make the next step of each. Quiet while there are none."""
        if not self._leads():
            return
        try:
            stored = await asyncio.to_thread(self._store.list_deployments)
            if stored:
                await self._tend(stored)
        except (ClusterError, OSError) as error:
            log.warning("deployments.not_tended", error=str(error))
        except Exception as error:  # as at the process boundary: recorded, and tried again
            log.error("deployments.crashed", exc_info=error)

    async def _tend(self, stored: Sequence[StoredDeployment]) -> None:
        try:
            planned = await asyncio.to_thread(self._plan, stored)
            view = await self._serving.apply(planned, partial(self._check_current, stored))
        except RayError as error:
            log.warning("serve.not_seen", error=str(error))
            for deployment in stored:
                await asyncio.to_thread(self._note, deployment, _unseen(deployment, error.message))
            return
        view = replace(view, applications=self._patience.judge(view.applications))
        for deployment in stored:
            await asyncio.to_thread(self._step_alone, deployment, view)

    async def _check_current(self, stored: Sequence[StoredDeployment]) -> None:
        """Conflict if a plan from these is old: a control plane that stood still may have been replaced meanwhile."""
        now = await asyncio.to_thread(self._store.list_deployments)
        if not self._leads() or _generations(now) != _generations(stored):
            raise Conflict("DEPLOYMENT_CHANGED", "what shall be served changed, or who brings it; look again")

    def _plan(self, stored: Sequence[StoredDeployment]) -> Plan:
        return plan(stored, self._manifests(stored), surroundings_of(self._settings, self._control_planes()))

    def _manifests(self, stored: Sequence[StoredDeployment]) -> dict[str, str]:
        living = [each for deployment in stored for each in deployment.revisions if each.is_up]
        found: dict[str, str] = {}
        for name in {each.model for each in living} | {each.trial.teacher for each in living if each.trial}:
            with contextlib.suppress(NotFound):
                found[name] = resolve(self._store, name).manifest_sha256
        return {name: sha256 for name, sha256 in found.items() if sha256}

    def _step_alone(self, deployment: StoredDeployment, view: ServeView) -> None:
        """What goes wrong with this one keeps nobody from tending the others."""
        try:
            self._count(self._step(deployment, view))
        except (ClusterError, OSError) as error:
            log.warning("deployment.not_tended", deployment=deployment.name, error=str(error))
        except Exception as error:  # as at the process boundary: recorded, and tried again
            log.error("deployment.crashed", deployment=deployment.name, exc_info=error)

    def _step(self, deployment: StoredDeployment, view: ServeView) -> StoredDeployment:
        """What became of it."""
        if deployment.state is DeploymentState.DELETING:
            if not any(_is_of(name, deployment.name) for name in view.applications):
                self._store.forget_deployment(deployment.name)
            return deployment
        seen = {each.number: view.seen(application_name(deployment.name, each.number)) for each in deployment.revisions}
        if words := view.refused.get(deployment.name):
            self._note(deployment, Told(DeploymentState.FAILED, words, view.endpoint, deployment.generation))
            return deployment
        look = Look(
            self._store.now_us(),
            seen,
            view.is_routed,
            self._followed(deployment),
            view.seen(judge_name(deployment.name, deployment.canary.number if deployment.canary else 0)),
        )
        observed = _observed(deployment, seen, view)
        step = advance(deployment, look, self._rules)
        if step.deployment != deployment:
            deployment, view = self._decide(deployment, step), replace(view, is_routed=False)
        self._note(deployment, Told(*_told(deployment, seen, view), observed))
        return deployment

    def _followed(self, deployment: StoredDeployment) -> Target | None:
        """Where the alias points now; None where none is followed, or it has not moved."""
        if not deployment.follow_alias:
            return None
        try:
            model = resolve(self._store, deployment.model)
        except NotFound:
            return None  # the alias is gone: what answers goes on
        if model.reference == deployment.followed:
            return None
        if deployment.gate is None or deployment.live is None:
            return Target(model.reference, model.path)
        try:
            return Target(model.reference, model.path, begin_trial(self._store, deployment.gate, model))
        except InvalidInput as error:
            return Target(model.reference, model.path, trouble=error.message)

    def _decide(self, deployment: StoredDeployment, step: Step) -> StoredDeployment:
        try:
            stored = self._store.decide_deployment(deployment, step.deployment, step.decisions)
        except Conflict:
            return deployment  # somebody wished something meanwhile; the next round looks again
        for decision in step.decisions:
            words = {"revision": decision.revision, "reason": decision.reason, "message": decision.message}
            log.info("deployment.decided", deployment=deployment.name, **words)
            if self.metrics is not None and decision.reason in _DECIDED:
                self.metrics.canary_decided(deployment.name, decision.reason)
        return stored

    def _note(self, deployment: StoredDeployment, told: Told) -> None:
        if deployment.state is DeploymentState.DELETING:
            return
        at = told.endpoint
        url = f"http://{at.host}:{at.port}/{deployment.name}/v1" if at.host else deployment.endpoint
        now = (told.state, told.message, url, told.observed_generation)
        if now != (deployment.state, deployment.message, deployment.endpoint, deployment.observed_generation):
            self._store.note_deployment(deployment.name, *now)
            seen = {"state": told.state, "message": told.message, "generation": told.observed_generation}
            log.info("deployment.seen", deployment=deployment.name, **seen)

    def _count(self, deployment: StoredDeployment) -> None:
        canary = None if deployment.state is DeploymentState.DELETING else deployment.canary
        if self.metrics is None:
            return
        if canary is None or canary.phase is not Phase.CANARY:
            self.metrics.canary_over(deployment.name)
            return
        of_gate = figures(canary.trial.gate, canary.trial.evidence) if canary.trial else ()
        divergence = next((each.mean for each in of_gate if each.name == "divergence"), None)
        self.metrics.canary(deployment.name, canary.weight / 10_000, divergence)


def _generations(stored: Sequence[StoredDeployment]) -> set[tuple[object, ...]]:
    """All that a plan depends on, without what was seen."""
    is_going = DeploymentState.DELETING
    return {(each.name, each.create_time_us, each.generation, each.state is is_going) for each in stored}


def _told(
    deployment: StoredDeployment, seen: Mapping[int, Seen], view: ServeView
) -> tuple[DeploymentState, str, Endpoint]:
    state, message = state_of(deployment, seen)
    if view.trouble and state is not DeploymentState.FAILED:
        return DeploymentState.DEPLOYING, view.trouble, view.endpoint
    if state is DeploymentState.READY and deployment.state is not state and not view.is_routed:
        return DeploymentState.DEPLOYING, "the gateway is being told of it", view.endpoint
    return state, message, view.endpoint


def _observed(deployment: StoredDeployment, seen: Mapping[int, Seen], view: ServeView) -> int:
    """The newest generation that Serve was seen to go by, which is not lost when a replica dies later."""
    is_there = is_settled(deployment, seen, is_routed=view.is_routed)
    return deployment.generation if is_there else deployment.observed_generation


def _is_of(application: str, deployment: str) -> bool:
    name, found, _ = application.rpartition("--")
    return bool(found) and name == deployment


def _unseen(deployment: StoredDeployment, words: str) -> Told:
    """A deployment whose Serve cannot be asked: what was ready may not be; why one failed stays known."""
    nowhere, observed = Endpoint("", 0), deployment.observed_generation
    if deployment.state is DeploymentState.FAILED:
        return Told(DeploymentState.FAILED, deployment.message, nowhere, observed)
    is_new = deployment.state is DeploymentState.PENDING
    return Told(DeploymentState.PENDING if is_new else DeploymentState.DEPLOYING, words, nowhere, observed)
