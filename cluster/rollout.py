"""What to do next about one deployment: pure functions from what is stored and what Serve shows to the next step.

Revisions come up beside each other: a new one takes requests when it is ready, and never before; the old one gets no
more, finishes, and goes. Whatever becomes of a new one, the old one is not touched until then. What people wish is in
rollout_wishes.py; what a canary has to show, in canary.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from cluster.canary import Outcome, Verdict, judge, may_grow, num_live
from cluster.store.deployment_records import Decision, Phase, Revision, StoredDeployment, Trial

WHOLE = 10_000
"""All requests, in basis points."""
_RESOURCES = ("cpus_per_replica", "gpus_per_replica", "engine")
"""Of each revision; those of the deployment are for the next one."""


class Shown(StrEnum):
    """What Serve shows of one application."""

    ABSENT = "ABSENT"
    STARTING = "STARTING"
    READY = "READY"
    UNHEALTHY = "UNHEALTHY"
    """Replicas die, and are replaced."""
    FAILED = "FAILED"


@dataclass(frozen=True)
class Seen:
    """One application on Serve."""

    state: Shown
    message: str = ""
    num_running: int = 0
    """Replicas that answer."""

    @property
    def answers(self) -> bool:
        """Ready, or with something changing beside replicas that answer."""
        return self.state is Shown.READY or self.num_running > 0


NOT_SEEN = Seen(Shown.ABSENT, "Ray Serve does not show it yet")


@dataclass(frozen=True)
class Target:
    """A model version that shall be served."""

    model: str
    path: str
    trial: Trial | None = None
    """With it, it comes as a canary."""
    mirror_share: float = 0.0
    """Of a canary without a gate: share of the requests that it is asked in the dark."""
    trouble: str = ""
    """Why it cannot be served."""


@dataclass(frozen=True)
class Look:
    """What one round has found out about one deployment."""

    now_us: int
    revisions: Mapping[int, Seen]
    is_routed: bool
    """The gateway goes by what is stored now."""
    target: Target | None = None
    """Where the alias points that is followed."""
    judge: Seen = NOT_SEEN


@dataclass(frozen=True)
class Rules:
    """Seconds."""

    start_timeout_s: float = 900.0
    drain_s: float = 5.0


@dataclass(frozen=True)
class Step:
    """What a deployment becomes, and what was decided."""

    deployment: StoredDeployment
    decisions: tuple[Decision, ...] = ()

    def then(self, later: Step) -> Step:
        return Step(later.deployment, self.decisions + later.decisions)


def advance(deployment: StoredDeployment, look: Look, rules: Rules) -> Step:
    """The next step; the deployment as it is, where there is nothing to do."""
    step = _follow(deployment, look)
    for revision in deployment.revisions:
        now = next(each for each in step.deployment.revisions if each.number == revision.number)
        if now.phase is revision.phase:  # else nothing was seen of it yet as it is now
            step = step.then(_tend(step.deployment, now, look, rules))
    return step


def begin(deployment: StoredDeployment, target: Target, why: str, actor: str = "", *, weight: int = 0) -> Step:
    """A new revision comes up; one that was under way is given up, model and resources stay as wished."""
    step = give_up(deployment, "another one was asked for", actor)
    number = deployment.newest.number + 1
    is_canary = target.trial is not None or weight > 0
    new = Revision(
        number,
        target.model,
        target.path,
        deployment.cpus_per_replica,
        deployment.gpus_per_replica,
        is_canary=is_canary,
        weight=weight,
        mirror_share=target.trial.gate.mirror_share if target.trial else target.mirror_share,
        trial=target.trial,
        engine=deployment.engine,
        message=why,
    )
    reason = "CANARY_ASKED" if is_canary else "UPDATE_ASKED"
    wished = {name: getattr(deployment, name) for name in ("model", *_RESOURCES)}
    now = replace(step.deployment, **wished, revisions=(*step.deployment.revisions, new))
    return step.then(Step(now, (Decision(reason, f"{target.model}: {why}", number, actor),)))


def give_up(deployment: StoredDeployment, why: str, actor: str = "") -> Step:
    """Whatever is coming goes; who answers goes on."""
    step = Step(deployment)
    for revision in deployment.coming:
        step = step.then(_fall(step.deployment, revision, Decision("SUPERSEDED", why, revision.number, actor)))
    return step


def promote(deployment: StoredDeployment, revision: Revision, decision: Decision) -> Step:
    """This one answers all requests from now on; who did before drains."""
    step = Step(deployment)
    for each in deployment.revisions:
        if each.phase is Phase.LIVE:
            step = Step(changed(step.deployment, replace(each, phase=Phase.DRAINING, weight=0, message="replaced")))
    live = replace(revision, phase=Phase.LIVE, weight=WHOLE, mirror_share=0.0, was_live=True, message=decision.message)
    now = replace(
        changed(step.deployment, live),
        model=deployment.model if deployment.follow_alias or not revision.is_canary else revision.model,
        resolved_model=revision.model,
        path=revision.path,
    )
    return Step(now, (decision,))


def changed(deployment: StoredDeployment, revision: Revision) -> StoredDeployment:
    """With this revision in the place of the one of its number."""
    each = tuple(revision if each.number == revision.number else each for each in deployment.revisions)
    return replace(deployment, revisions=each)


def shares(deployment: StoredDeployment) -> dict[int, int]:
    """Basis points of the requests by revision, of those that may answer any."""
    canary = next((each for each in deployment.revisions if each.phase is Phase.CANARY), None)
    found = {canary.number: canary.weight} if canary else {}
    if deployment.live is not None:
        found[deployment.live.number] = WHOLE - sum(found.values())
    return dict(sorted(found.items()))


def _follow(deployment: StoredDeployment, look: Look) -> Step:
    """A move of the alias begins an update, a canary where there is a gate; one back to who answers ends it."""
    target = look.target
    if target is None or not deployment.follow_alias or target.model == deployment.followed:
        return Step(deployment)
    known = replace(deployment, followed=target.model, is_untried=bool(target.trouble))
    if target.trouble:
        words = f"{deployment.model} was moved to {target.model}, which does not come: {target.trouble}"
        return Step(known, (Decision("ALIAS_NOT_FOLLOWED", words),))
    if deployment.live is not None and deployment.live.model == target.model:
        return give_up(known, f"{deployment.model} points at {target.model} again")
    if any(each.model == target.model for each in deployment.coming):
        return Step(known)
    words = f"{deployment.model} was moved to it"
    if target.trial is None or deployment.live is None:
        return begin(known, replace(target, trial=None, mirror_share=0.0), words)
    return begin(known, target, words, weight=next(iter(target.trial.gate.steps), 0))


def _tend(deployment: StoredDeployment, revision: Revision, look: Look, rules: Rules) -> Step:
    seen = look.revisions.get(revision.number, NOT_SEEN)
    age_s = (look.now_us - revision.phase_time_us) / 1e6
    if revision.phase is Phase.STARTING:
        judged = _with_judge(seen, look.judge) if revision.trial else seen
        return _starting(deployment, revision, judged, age_s > rules.start_timeout_s)
    if revision.phase is Phase.CANARY:
        return _canary(deployment, revision, seen, look.judge, age_s)
    if revision.phase is Phase.DRAINING and look.is_routed:
        return _draining(deployment, revision, look.now_us, rules.drain_s)
    return Step(deployment)


def _starting(deployment: StoredDeployment, revision: Revision, seen: Seen, is_late: bool) -> Step:
    if seen.state is Shown.READY:
        if not revision.is_canary:
            words = f"{revision.model} answers requests"
            return promote(deployment, revision, Decision("REVISION_LIVE", words, revision.number))
        words = f"{revision.model} takes {revision.weight / 100:g} %, {100 * revision.mirror_share:g} % in the dark"
        up = replace(revision, phase=Phase.CANARY, message=words)
        return Step(changed(deployment, up), (Decision("CANARY_STARTED", words, revision.number),))
    if deployment.live is None or not (is_late or seen.state is Shown.FAILED):
        return Step(deployment)  # without another one there is nothing to go back to
    words = seen.message if seen.state is Shown.FAILED else f"did not come up in time: {seen.message}"
    return _fall(deployment, revision, Decision("REVISION_FAILED", words, revision.number))


def _draining(deployment: StoredDeployment, revision: Revision, now_us: int, drain_s: float) -> Step:
    """It gets no more requests since the gateway knows it, which may be long after that was decided."""
    since_us = revision.unrouted_time_us or now_us
    phase = Phase.GONE if now_us - since_us >= drain_s * 1e6 else Phase.DRAINING
    return Step(changed(deployment, replace(revision, phase=phase, unrouted_time_us=since_us)))


def _with_judge(seen: Seen, judge: Seen) -> Seen:
    """A canary with a gate is ready when its judge is too."""
    if seen.state is Shown.READY and judge.state is not Shown.READY:
        state = Shown.FAILED if judge.state is Shown.FAILED else Shown.STARTING
        return Seen(state, f"its judge: {judge.message or 'starting'}")
    return seen


def _canary(deployment: StoredDeployment, revision: Revision, seen: Seen, judge: Seen, age_s: float) -> Step:
    """One that nobody can judge any more goes, as one that fails does; what was shown before that counts."""
    if seen.state is Shown.FAILED:
        return _fall(deployment, revision, Decision("CANARY_ROLLED_BACK", seen.message, revision.number))
    verdict = _verdict(revision, age_s)
    if verdict.outcome is Outcome.PROMOTE and not _has_grown(revision):
        verdict = _waiting(revision, verdict, age_s)
    if verdict.outcome is Outcome.GO_ON and revision.trial is not None and judge.state is Shown.FAILED:
        verdict = replace(verdict, outcome=Outcome.ROLL_BACK, message=f"its judge has failed: {judge.message}")
    if verdict.outcome is Outcome.GO_ON:
        return _grow(deployment, revision)
    is_good = verdict.outcome is Outcome.PROMOTE
    reason = "CANARY_PROMOTED" if is_good else "CANARY_ROLLED_BACK"
    decision = Decision(reason, verdict.message, revision.number, figures=verdict.document())
    return (promote if is_good else _fall)(deployment, revision, decision)


def _next_weight(revision: Revision) -> int | None:
    steps = revision.trial.gate.steps if revision.trial else ()
    return next((step for step in steps if step > revision.weight), None)


def _has_grown(revision: Revision) -> bool:
    """Through all its steps, with enough requests of its own users at the last one."""
    trial = revision.trial
    if trial is None or not trial.gate.steps:
        return True
    return _next_weight(revision) is None and may_grow(trial.gate, trial.evidence, trial.live_at_step)


def _waiting(revision: Revision, verdict: Verdict, age_s: float) -> Verdict:
    """Good as far as was seen, but its steps wait for users."""
    assert revision.trial is not None
    if age_s <= revision.trial.gate.max_duration_s:
        return replace(verdict, outcome=Outcome.GO_ON)
    words = f"its steps waited for users for {age_s:.0f} s, at {revision.weight / 100:g} %; {verdict.message}"
    return replace(verdict, outcome=Outcome.ROLL_BACK, message=words)


def _grow(deployment: StoredDeployment, revision: Revision) -> Step:
    """The next step of its share, where nothing that was seen so far speaks against it; 0 is held by hand."""
    trial, weight = revision.trial, _next_weight(revision) if revision.weight else None
    if trial is None or weight is None or not may_grow(trial.gate, trial.evidence, trial.live_at_step):
        return Step(deployment)
    live = num_live(trial.gate, trial.evidence)
    words = f"{revision.model} takes {weight / 100:g} % after {live} requests of its own users"
    grown = replace(revision, weight=weight, message=words, trial=replace(trial, live_at_step=live))
    return Step(changed(deployment, grown), (Decision("CANARY_GREW", words, revision.number),))


def _verdict(revision: Revision, age_s: float) -> Verdict:
    if revision.trial is None:
        return Verdict(Outcome.GO_ON, "without a gate: promoted or rolled back by hand")
    return judge(revision.trial.gate, revision.trial.evidence, age_s)


def _fall(deployment: StoredDeployment, revision: Revision, decision: Decision) -> Step:
    """One that was coming goes, at once where it never had a request; what was wished for it is wished no more."""
    phase = Phase.DRAINING if revision.phase is Phase.CANARY else Phase.GONE
    down = replace(revision, phase=phase, weight=0, mirror_share=0.0, message=decision.message)
    now = changed(deployment, down)
    if (live := deployment.live) is not None:
        now = replace(now, **{name: getattr(live, name) for name in _RESOURCES})
        now = now if deployment.follow_alias else replace(now, model=live.model)
    return Step(now, (decision,))
