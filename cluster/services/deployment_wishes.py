"""What people wish of deployments, from their messages to what is stored: checked, resolved, tried again when it moved.

What a wish makes of a deployment is decided in rollout_wishes.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from athanor.v1 import deployment_service_pb2 as messages

from cluster import rollout_wishes
from cluster.deployment_wire import (
    autoscaling_from_proto,
    check,
    engine_from_proto,
    etag,
    gate_from_proto,
    name_violations,
    scale_violations,
    share_violations,
    weight_violations,
)
from cluster.errors import Conflict, InvalidInput, NotFound, Violation
from cluster.registry import NAME_RULE, is_name, parse_reference, resolve
from cluster.rollout import Step, Target
from cluster.security.caller import caller
from cluster.services.submission import check_request_id
from cluster.settings import Settings
from cluster.store.deployment_records import DeploymentState, Gate, StoredDeployment
from cluster.store.records import StoredModel
from cluster.store.store import Store
from cluster.trials import begin_trial

_TRIES = 8
_DEFAULT_PROJECT = "default"
_CHANGEABLE = (
    *("model", "num_replicas", "autoscaling", "cpus_per_replica", "gpus_per_replica", "follow_alias", "gate", "engine"),
)

Wish = Callable[[StoredDeployment], Step]


class DeploymentWishes:
    """Of one store."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def create(self, request: messages.CreateDeploymentRequest) -> StoredDeployment:
        """The reference is pinned now; only a deployment that follows its alias moves with it."""
        check_request_id(request.request_id)
        new = self._new(request.deployment)
        if request.validate_only:
            return new
        return self._store.create_deployment(new, request.request_id, _sha256(request.deployment))

    def _new(self, wish: messages.Deployment) -> StoredDeployment:
        check([*name_violations(wish.name), *_project_violations(wish.project), *scale_violations(wish)])
        project = wish.project or _DEFAULT_PROJECT
        caller().check_writes_to(project)
        model = self._resolve(wish.model, "deployment.model")
        new = StoredDeployment(
            name=wish.name,
            model=wish.model,
            resolved_model=model.reference,
            path=model.path,
            num_replicas=wish.num_replicas or 1,
            cpus_per_replica=wish.cpus_per_replica or 1.0,
            gpus_per_replica=wish.gpus_per_replica,
            state=DeploymentState.PENDING,
            message="stored; waits for Ray Serve",
            create_time_us=0,
            update_time_us=0,
            endpoint=f"{self._settings.serve_url}/{wish.name}/v1",
            project=project,
            creator=caller().name,
            follow_alias=wish.follow_alias,
            followed=model.reference,
        )
        optional = {name: _value(wish, name) for name in ("autoscaling", "gate", "engine")}
        return self._checked(replace(new, **optional))

    def update(self, request: messages.UpdateDeploymentRequest) -> StoredDeployment:
        """InvalidInput / INVALID_UPDATE for a mask, Conflict / ETAG_MISMATCH."""
        paths = _mask(request)
        check(list(scale_violations(request.deployment)))
        changes = {path: _value(request.deployment, path) for path in paths}
        model = self._resolve(request.deployment.model, "deployment.model") if "model" in changes else None
        target = Target(model.reference, model.path) if model else None

        def wish(deployment: StoredDeployment) -> Step:
            aim = target.model if target else deployment.resolved_model
            wished = replace(deployment, **changes, resolved_model=aim)
            self._checked(wished, with_gate="gate" in changes)
            return rollout_wishes.update(deployment, changes, target, caller().name)

        return self._make(request.deployment.name, wish, request.etag)

    def start_canary(self, request: messages.StartCanaryRequest) -> StoredDeployment:
        check([*weight_violations(request.weight, "weight"), *_mirror_violations(request)])
        model = self._resolve(request.model, "model")
        target, weight = Target(model.reference, model.path, mirror_share=request.mirror_share), request.weight
        if request.HasField("gate"):
            gate = gate_from_proto(request.gate, "gate")
            target = replace(target, trial=begin_trial(self._store, gate, model))
            weight = _first_weight(gate, request.weight)
        wish = partial(rollout_wishes.start_canary, target=target, weight=weight, actor=caller().name)
        return self._make(request.name, wish)

    def set_traffic(self, request: messages.SetTrafficRequest) -> StoredDeployment:
        share = request.mirror_share if request.HasField("mirror_share") else None
        wrong = [*weight_violations(request.canary_weight, "canary_weight")]
        check(wrong + list(share_violations(share or 0.0, "mirror_share")))
        wish = partial(
            rollout_wishes.set_traffic, weight=request.canary_weight, mirror_share=share, actor=caller().name
        )
        return self._make(request.name, wish)

    def promote(self, name: str) -> StoredDeployment:
        return self._make(name, partial(rollout_wishes.promote_canary, actor=caller().name))

    def roll_back(self, name: str) -> StoredDeployment:
        return self._make(name, partial(rollout_wishes.roll_back, actor=caller().name))

    def delete(self, name: str) -> None:
        caller().check_writes_to(self._store.get_deployment(name).project)
        self._store.delete_deployment(name)

    def _make(self, name: str, wish: Wish, wanted_etag: str = "") -> StoredDeployment:
        """The deployment after the wish; as it is, where there is nothing to change."""
        for _ in range(_TRIES):
            known = self._store.get_deployment(name)
            caller().check_writes_to(known.project)
            if known.state is DeploymentState.DELETING:
                raise NotFound("DEPLOYMENT_NOT_FOUND", f"deployment {name!r} is being deleted")
            if wanted_etag and wanted_etag != etag(known):
                words = f"has etag {etag(known)} now, not {wanted_etag[:60]}: somebody changed it; read it again"
                raise Conflict("ETAG_MISMATCH", f"deployment {name!r} {words}")
            step = wish(known)
            if step.deployment == known:
                return known
            try:
                return self._store.decide_deployment(known, step.deployment, step.decisions)
            except Conflict:
                continue
        raise Conflict("DEPLOYMENT_CHANGED", f"{name!r} changes faster than the wish can be stored; try again")

    def _resolve(self, reference: str, field: str) -> StoredModel:
        try:
            return resolve(self._store, reference)
        except (NotFound, InvalidInput) as error:
            raise type(error)(error.reason, error.message, [Violation(field, error.message)]) from error

    def _checked(self, deployment: StoredDeployment, *, with_gate: bool = True) -> StoredDeployment:
        """What only the whole of it shows: an alias to follow, and that its gate can judge its model."""
        if deployment.follow_alias and not parse_reference(deployment.model).alias:
            words = f"{deployment.model!r} names no alias to follow; write name@alias, or follow none (--no-follow)"
            check([Violation("deployment.follow_alias", words)])
        if deployment.gate is not None and with_gate:
            begin_trial(
                self._store, deployment.gate, resolve(self._store, deployment.resolved_model), "deployment.gate"
            )
        return deployment


def _mirror_violations(request: messages.StartCanaryRequest) -> list[Violation]:
    if request.HasField("gate") and request.HasField("mirror_share"):
        return [Violation("mirror_share", "with a gate, gate.mirror_share says how much is mirrored; give it there")]
    return list(share_violations(request.mirror_share, "mirror_share"))


def _first_weight(gate: Gate, weight: int) -> int:
    """A canary with steps begins with the first one."""
    if weight and gate.steps:
        words = f"{weight} beside gate.steps, which say the canary's share; leave one of them out"
        check([Violation("weight", words)])
    return gate.steps[0] if gate.steps else weight


def _sha256(wish: messages.Deployment) -> str:
    return hashlib.sha256(wish.SerializeToString(deterministic=True)).hexdigest()


def _project_violations(project: str) -> list[Violation]:
    wrong = bool(project) and not is_name(project)
    return [Violation("deployment.project", f"{project!r} is no name; {NAME_RULE}")] if wrong else []


def _mask(request: messages.UpdateDeploymentRequest) -> list[str]:
    paths = list(dict.fromkeys(request.update_mask.paths))
    unknown = [path for path in paths if path not in _CHANGEABLE]
    if unknown or not paths:
        named = f"{unknown[0][:80]!r} cannot be changed" if unknown else "names no field"
        words = f"{named}; of a deployment {', '.join(_CHANGEABLE)} can be changed"
        raise InvalidInput("INVALID_UPDATE", f"update_mask: {words}", [Violation("update_mask", words)])
    return paths


def _value(wish: messages.Deployment, path: str) -> Any:
    """Of one field; without autoscaling or a gate in the message there is none any more."""
    if path == "autoscaling":
        return (
            autoscaling_from_proto(wish.autoscaling, "deployment.autoscaling") if wish.HasField("autoscaling") else None
        )
    if path == "gate":
        return gate_from_proto(wish.gate, "deployment.gate") if wish.HasField("gate") else None
    if path == "engine":
        return engine_from_proto(wish.engine, "deployment.engine") if wish.HasField("engine") else None
    if path in ("num_replicas", "cpus_per_replica"):
        return getattr(wish, path) or type(getattr(wish, path))(1)
    return getattr(wish, path)
