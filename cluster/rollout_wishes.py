"""What people may ask of a deployment that is there: pure functions from a wish to the next step.

Every wish that cannot be is a `ClusterError` in words for people. What follows by itself is in rollout.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cluster.canary import num_live
from cluster.errors import InvalidInput, PreconditionFailed, Violation
from cluster.rollout import WHOLE, Step, Target, begin, changed, give_up, promote
from cluster.store.deployment_records import Decision, Phase, Revision, StoredDeployment, Trial

_NEEDS_REVISION = ("cpus_per_replica", "gpus_per_replica", "engine")


def update(deployment: StoredDeployment, changes: Mapping[str, Any], target: Target | None, actor: str) -> Step:
    """New values. Another version or other resources come as a new revision; the rest is changed where it is."""
    now = replace(deployment, **changes)
    wanted = target or _again(deployment)
    needs = any(getattr(now, field) != getattr(deployment, field) for field in _NEEDS_REVISION)
    if target is not None:
        now = replace(now, followed=target.model, is_untried=False)
        needs = needs or target.model != _aim(deployment).model
    elif now.is_untried and now.gate != deployment.gate:
        now = replace(now, followed=deployment.resolved_model, is_untried=False)
    words = ", ".join(sorted([*changes, *(["model"] if target else [])]))
    if needs:
        return begin(now, wanted, f"asked to change {words}", actor)
    return Step(
        now, (Decision("DEPLOYMENT_UPDATED", f"asked to change {words}", 0, actor),) if now != deployment else ()
    )


def start_canary(deployment: StoredDeployment, target: Target, weight: int, actor: str) -> Step:
    """PreconditionFailed / NOT_LIVE without a version that answers, CANARY_EXISTS beside another one.

    InvalidInput / INVALID_DEPLOYMENT for all requests to one with a gate.
    """
    _check_leaves_some(target.trial, weight, "weight")
    if deployment.live is None:
        raise PreconditionFailed("NOT_LIVE", f"no version of {deployment.name} answers yet; a canary goes beside one")
    if deployment.coming:
        other = deployment.coming[0]
        words = f"{other.model} (revision {other.number}) is on its way already; promote it or roll it back first"
        raise PreconditionFailed("CANARY_EXISTS", f"{deployment.name}: {words}")
    step = begin(deployment, target, f"asked for as a canary with {weight / 100:g} %", actor, weight=weight)
    newest = step.deployment.newest
    return replace(step, deployment=changed(step.deployment, replace(newest, is_canary=True)))


def set_traffic(deployment: StoredDeployment, weight: int, mirror_share: float | None, actor: str) -> Step:
    """The canary's share from now on. InvalidInput / INVALID_DEPLOYMENT for one that shows its gate nothing."""
    canary = _canary(deployment)
    _check_leaves_some(canary.trial, weight, "canary_weight")
    share = canary.mirror_share if mirror_share is None else mirror_share
    if canary.trial is not None and share == 0:
        words = "0 shows its gate nothing; give some, or end the canary"
        raise InvalidInput("INVALID_DEPLOYMENT", f"mirror_share: {words}", [Violation("mirror_share", words)])
    if (weight, share) == (canary.weight, canary.mirror_share):
        return Step(deployment)
    words = f"{canary.model} takes {weight / 100:g} %, {100 * share:g} % in the dark"
    now = changed(deployment, replace(canary, weight=weight, mirror_share=share, trial=_from_here(canary.trial)))
    return Step(now, (Decision("TRAFFIC_SET", words, canary.number, actor),))


def promote_canary(deployment: StoredDeployment, actor: str) -> Step:
    """PreconditionFailed / CANARY_NOT_READY while its replicas come up."""
    canary = _canary(deployment)
    if canary.phase is not Phase.CANARY:
        words = f"{canary.model} is not up yet; promote it when it is a canary"
        raise PreconditionFailed("CANARY_NOT_READY", f"{deployment.name}: {words}")
    return promote(deployment, canary, Decision("CANARY_PROMOTED", "asked to promote it", canary.number, actor))


def roll_back(deployment: StoredDeployment, actor: str) -> Step:
    """Give up what is coming; else go back to the version that answered before."""
    if deployment.live is not None and deployment.coming:
        return give_up(deployment, "asked to roll it back", actor)
    earlier = next((each for each in reversed(deployment.revisions) if _is_earlier(deployment, each)), None)
    if earlier is None:
        words = "no other version answered before"
        raise PreconditionFailed("NO_EARLIER_REVISION", f"{deployment.name}: {words}; update it to one")
    target = Target(earlier.model, earlier.path)
    step = begin(deployment, target, f"asked to go back to revision {earlier.number}", actor)
    model = deployment.model if deployment.follow_alias else earlier.model
    return replace(step, deployment=replace(step.deployment, model=model))


def _is_earlier(deployment: StoredDeployment, revision: Revision) -> bool:
    """Whether it answered all requests once, and another version does now."""
    return revision.was_live and revision.phase is not Phase.LIVE and revision.model != deployment.resolved_model


def _check_leaves_some(trial: Trial | None, weight: int, field: str) -> None:
    """A gate compares what the live version answered; of a canary that answers everything it would see nothing."""
    if trial is not None and weight >= WHOLE:
        words = f"{weight} leaves its gate nothing to compare with; give less than {WHOLE}, or promote the canary"
        raise InvalidInput("INVALID_DEPLOYMENT", f"{field}: {words}", [Violation(field, words)])


def _from_here(trial: Trial | None) -> Trial | None:
    """The next step of its share waits for as many users as if this had been one."""
    return trial and replace(trial, live_at_step=num_live(trial.gate, trial.evidence))


def _canary(deployment: StoredDeployment) -> Revision:
    if deployment.canary is None:
        raise PreconditionFailed("NO_CANARY", f"{deployment.name} has no canary; start one with `athanor serve canary`")
    return deployment.canary


def _aim(deployment: StoredDeployment) -> Revision:
    """What it will be when nothing goes wrong."""
    plain = [each for each in deployment.coming if not each.is_canary]
    return plain[-1] if plain else (deployment.live or deployment.newest)


def _again(deployment: StoredDeployment) -> Target:
    aim = _aim(deployment)
    return Target(aim.model, aim.path)
