"""What Ray Serve shall hold, from the stored deployments: an application for each revision, a judge for each canary
that has a gate, and one gateway before them all. Pure; deployer.py brings it there.

An application is built anew when its `args` change, and only reconfigured when its `deployments` do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.rollout import shares
from cluster.store.deployment_records import Autoscaling, DeploymentState, Engine, Phase, Revision, StoredDeployment
from serving.routes import Backend, Mirror, Route, RouteTable

GATEWAY = "athanor"
"""The application that answers at `/`."""
REPLICA_PATH, GATEWAY_PATH, JUDGE_PATH = (f"serving.app:{name}" for name in ("build", "build_gateway", "build_judge"))
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What all applications of one installation are told."""

    storage: Path
    control_planes: tuple[str, ...] = ()
    tls_ca: str | None = None
    tls_cert: str | None = None
    """Paths of what is shown to control planes that ask for a certificate."""
    tls_key: str | None = None
    auth: str = "token"
    num_gateways: int = 1


@dataclass(frozen=True)
class Plan:
    """All of ours on Serve."""

    applications: tuple[Json, ...] = ()
    prefixes: tuple[str, ...] = ()
    """Names of the deployments: each has its path."""


def application_name(deployment: str, revision: int) -> str:
    return f"{deployment}--r{revision}"


def judge_name(deployment: str, canary: int) -> str:
    return f"{deployment}--judge{canary}"


def is_judge(application: str) -> bool:
    """Whether this is such a name, and not that of a revision."""
    deployment, _, number = application.rpartition("--judge")
    return bool(deployment) and number.isdecimal()


def plan(deployments: Sequence[StoredDeployment], manifests: Mapping[str, str], around: Surroundings) -> Plan:
    """`manifests`: sha256 of the manifest of each model version; its replicas then serve no other."""
    living = [each for each in deployments if each.state is not DeploymentState.DELETING]
    if not living:
        return Plan()
    found = [_gateway(living, around)]
    for deployment in living:
        found += [_replicas(deployment, each, manifests) for each in deployment.revisions if each.is_up]
        found += [_judge(deployment, each, manifests, around) for each in deployment.coming if each.trial]
    by_name = sorted(found, key=lambda each: str(each["name"]))
    return Plan(tuple(by_name), tuple(each.name for each in living))


def route_table(deployments: Sequence[StoredDeployment], around: Surroundings) -> RouteTable:
    """What the gateway goes by."""
    return RouteTable(
        routes=tuple(_route(each) for each in deployments),
        control_planes=around.control_planes,
        tls_ca=around.tls_ca,
        tls_cert=around.tls_cert,
        tls_key=around.tls_key,
        auth="none" if around.auth == "none" else "token",
    )


def _route(deployment: StoredDeployment) -> Route:
    of_each = {each.number: each for each in deployment.revisions}
    backends = tuple(
        Backend(
            app=application_name(deployment.name, number),
            model=of_each[number].model,
            revision=number,
            weight=weight,
        )
        for number, weight in shares(deployment).items()
    )
    live = deployment.live.number if deployment.live else None
    canary = next((each for each in deployment.revisions if each.phase is Phase.CANARY), None)
    if canary is None or live is None:
        return Route(name=deployment.name, backends=backends, live=live)
    mirror = None
    if canary.mirror_share > 0:
        app = application_name(deployment.name, canary.number)
        mirror = Mirror(app=app, revision=canary.number, share=canary.mirror_share)
    judge = judge_name(deployment.name, canary.number) if canary.trial else None
    return Route(name=deployment.name, backends=backends, live=live, mirror=mirror, judge_app=judge)


def _gateway(deployments: Sequence[StoredDeployment], around: Surroundings) -> Json:
    table = route_table(deployments, around).model_dump(mode="json")
    settings = {"name": "Gateway", "num_replicas": around.num_gateways, "user_config": table}
    return {
        "name": GATEWAY,
        "route_prefix": "/",
        "import_path": GATEWAY_PATH,
        "args": {"storage": str(around.storage)},
        "deployments": [settings],
    }


def _replicas(deployment: StoredDeployment, revision: Revision, manifests: Mapping[str, str]) -> Json:
    return {
        "name": application_name(deployment.name, revision.number),
        "route_prefix": None,
        "import_path": REPLICA_PATH,
        "args": {
            "name": deployment.name,
            "revision": revision.number,
            **_model(revision.model, revision.path, manifests),
            **_engine(revision.engine),
        },
        "deployments": [_scale(deployment, revision)],
    }


def _scale(deployment: StoredDeployment, revision: Revision) -> Json:
    needs = {"num_cpus": revision.cpus_per_replica, "num_gpus": revision.gpus_per_replica}
    found: dict[str, object] = {"name": "Replica", "ray_actor_options": needs}
    if deployment.autoscaling is None:
        return found | {"num_replicas": deployment.num_replicas}
    return found | {"autoscaling_config": _by_load(deployment.autoscaling)}


def _by_load(wish: Autoscaling) -> Json:
    """By Serve's names."""
    return {
        "min_replicas": wish.min_replicas,
        "max_replicas": wish.max_replicas,
        "target_ongoing_requests": wish.target_ongoing_requests,
        "upscale_delay_s": wish.scale_up_delay_s,
        "downscale_delay_s": wish.scale_down_delay_s,
        # Where there may be none, one comes up all the same: only so is it known that the model can be served.
        "initial_replicas": max(1, wish.min_replicas),
    }


def _judge(deployment: StoredDeployment, canary: Revision, manifests: Mapping[str, str], around: Surroundings) -> Json:
    trial = canary.trial
    assert trial is not None
    told = {"control_planes": list(around.control_planes), "tls_ca": around.tls_ca}
    shown = {"tls_cert": around.tls_cert, "tls_key": around.tls_key}
    data = {"task_data": trial.gate.task_data, "task_sha256": trial.task_sha256 or None}
    args = {
        "name": deployment.name,
        "revision": canary.number,
        "canary_app": application_name(deployment.name, canary.number),
        "token": trial.token,
        **_model(trial.teacher, trial.teacher_path, manifests),
        **(data if trial.gate.task_data else {}),
    }
    needs = {"num_cpus": canary.cpus_per_replica, "num_gpus": canary.gpus_per_replica}
    config = {**told, **shown, **_examined(deployment, canary)}
    return {
        "name": judge_name(deployment.name, canary.number),
        "route_prefix": None,
        "import_path": JUDGE_PATH,
        "args": args,
        "deployments": [{"name": "Judge", "user_config": config, "ray_actor_options": needs}],
    }


def _examined(deployment: StoredDeployment, canary: Revision) -> dict[str, str]:
    """Beside whom the canary is asked labelled examples, once it is up."""
    is_up = canary.phase is Phase.CANARY and deployment.live is not None
    if canary.trial is None or not canary.trial.gate.task_data or not is_up:
        return {}
    assert deployment.live is not None
    return {"stable_app": application_name(deployment.name, deployment.live.number)}


def _engine(engine: Engine | None) -> dict[str, object]:
    """Nothing for the default: an application whose `args` change is built anew."""
    return {} if engine is None else {"engine": asdict(engine)}


def _model(reference: str, path: str, manifests: Mapping[str, str]) -> dict[str, object]:
    name, _, version = reference.rpartition("@")
    required = {"manifest_sha256": manifests[reference]} if reference in manifests else {}
    return {"model_path": path, "model_name": name, "version": int(version), **required}
