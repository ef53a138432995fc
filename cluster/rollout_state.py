"""What is told of a deployment: how far it is, and whether all that was asked of it is there. Pure, as rollout.py."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.rollout import NOT_SEEN, Seen, Shown
from cluster.store.deployment_records import DeploymentState, Phase, StoredDeployment

_ANSWERING = (Phase.LIVE, Phase.CANARY)


def state_of(deployment: StoredDeployment, seen: Mapping[int, Seen]) -> tuple[DeploymentState, str]:
    """How far the deployment is, with one sentence for people."""
    main = deployment.live or (deployment.coming[0] if deployment.coming else deployment.newest)
    found = seen.get(main.number, NOT_SEEN)
    if deployment.live is not None and found.answers:
        return DeploymentState.READY, "; ".join([f"{main.model} answers requests", *_beside(deployment, found)])
    if found.state is Shown.FAILED:
        return DeploymentState.FAILED, found.message
    if found.state is Shown.ABSENT:
        return DeploymentState.PENDING, found.message
    return DeploymentState.DEPLOYING, found.message or "replicas are starting"


def is_settled(deployment: StoredDeployment, seen: Mapping[int, Seen], *, is_routed: bool) -> bool:
    """Whether Serve goes by this generation of it, or has given it up.

    Then the gateway has its table, and whatever answers has the replicas that were asked for.
    """
    if state_of(deployment, seen)[0] is DeploymentState.FAILED:
        return True
    answering = [seen.get(each.number, NOT_SEEN) for each in deployment.revisions if each.phase in _ANSWERING]
    return is_routed and all(each.state is Shown.READY for each in answering)


def _beside(deployment: StoredDeployment, live: Seen) -> list[str]:
    """What else is going on, or how the last try ended."""
    words = [live.message] if live.state is Shown.STARTING and live.message else []
    for each in deployment.coming:
        if each.phase is Phase.CANARY:
            words.append(
                f"canary {each.model} takes {each.weight / 100:g} %, {100 * each.mirror_share:g} % in the dark"
            )
        else:
            words.append(f"{each.model} comes up")
    newest = deployment.newest
    if not deployment.coming and deployment.live is not newest and newest.phase in (Phase.DRAINING, Phase.GONE):
        words.append(f"{newest.model} was taken back: {newest.message}")
    return words
