"""What Serve is told of stored deployments: applications, their scale, and the table of routes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.serve_plan import GATEWAY, Surroundings, plan, route_table
from cluster.store.deployment_records import (
    Autoscaling,
    DeploymentState,
    Engine,
    Gate,
    Phase,
    Revision,
    StoredDeployment,
    Trial,
)
from serving.options import GatewayOptions, JudgeOptions, ModelOptions
from serving.routes import RouteTable

AROUND = Surroundings(Path("/storage"), ("127.0.0.1:50051",), auth="none", num_gateways=2)
TRIAL = Trial(Gate(), "teacher@2", "/storage/models/teacher/2", "secret")
LIVE = Revision(1, "bot@3", "/storage/models/bot/3", 2.0, 0.5, phase=Phase.LIVE, weight=10_000)
CANARY = replace(LIVE, number=2, model="bot@4", phase=Phase.CANARY, is_canary=True, weight=1500)
BOT = StoredDeployment(
    "desk", "bot@3", "bot@3", "/storage/models/bot/3", 2, 2.0, 0.5, DeploymentState.READY, "", 0, 0, revisions=(LIVE,)
)


def applications(*deployments: StoredDeployment) -> dict:
    found = plan(deployments, {"bot@3": "ab" * 32}, AROUND).applications
    return {each["name"]: each for each in found}


def test_nothing_deployed_is_nothing_planned():
    assert plan([], {}, AROUND).applications == ()
    assert plan([replace(BOT, state=DeploymentState.DELETING)], {}, AROUND).applications == ()


def test_a_gateway_before_a_revision():
    found = applications(BOT)
    assert found.keys() == {GATEWAY, "desk--r1"}
    assert (found[GATEWAY]["route_prefix"], found["desk--r1"]["route_prefix"]) == ("/", None)
    gateway, replica = (found[name]["deployments"][0] for name in (GATEWAY, "desk--r1"))
    assert gateway["num_replicas"] == 2
    assert replica == {
        "name": "Replica",
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 2.0, "num_gpus": 0.5},
    }
    options = ModelOptions.model_validate(found["desk--r1"]["args"])
    assert (options.name, options.version, options.manifest_sha256) == ("desk", 3, "ab" * 32)
    assert GatewayOptions.model_validate(found[GATEWAY]["args"]).storage == Path("/storage")


def test_more_replicas_and_another_share_build_no_application_anew():
    """Serve builds an application anew when its args change, and restarts all of its replicas."""
    before, after = applications(BOT), applications(replace(BOT, num_replicas=5, revisions=(LIVE, CANARY)))
    for name in before:
        assert before[name]["args"] == after[name]["args"]


def test_scaling_to_zero_begins_with_one():
    scaled = replace(BOT, autoscaling=Autoscaling(0, 4, 2.0, scale_down_delay_s=60.0))
    (replica,) = applications(scaled)["desk--r1"]["deployments"]
    assert replica["autoscaling_config"] == {
        "min_replicas": 0,
        "max_replicas": 4,
        "target_ongoing_requests": 2.0,
        "upscale_delay_s": 30.0,
        "downscale_delay_s": 60.0,
        "initial_replicas": 1,
    }
    assert "num_replicas" not in replica


def test_a_canary_with_a_gate_has_a_judge_with_the_teacher_in_it():
    canary = replace(CANARY, trial=TRIAL, mirror_share=0.25)
    found = applications(replace(BOT, revisions=(LIVE, canary)))
    judge = found["desk--judge2"]
    options = JudgeOptions.model_validate(judge["args"])
    assert (options.model_name, options.version, options.revision, options.token) == ("teacher", 2, 2, "secret")
    assert judge["deployments"][0]["user_config"]["control_planes"] == ["127.0.0.1:50051"]
    assert "secret" not in str(found[GATEWAY])
    over = replace(canary, phase=Phase.DRAINING)
    assert "desk--judge2" not in applications(replace(BOT, revisions=(LIVE, over)))


def test_a_judge_examines_a_canary_once_that_is_up():
    gate = Gate(task_data="/data/test.jsonl")
    canary = replace(CANARY, trial=replace(TRIAL, gate=gate, task_sha256="cd" * 32))
    judge = applications(replace(BOT, revisions=(LIVE, canary)))["desk--judge2"]
    options = JudgeOptions.model_validate(judge["args"])
    assert (str(options.task_data), options.task_sha256) == ("/data/test.jsonl", "cd" * 32)
    assert judge["deployments"][0]["user_config"]["stable_app"] == "desk--r1"
    starting = applications(replace(BOT, revisions=(LIVE, replace(canary, phase=Phase.STARTING))))["desk--judge2"]
    assert "stable_app" not in starting["deployments"][0]["user_config"]
    assert starting["args"] == judge["args"], "else it would be built anew"


def test_an_engine_of_ones_own_is_told_to_the_replicas_alone():
    engine = Engine("vllm", {"max_model_len": 2048.0})
    found = applications(replace(BOT, revisions=(replace(LIVE, engine=engine),)))["desk--r1"]
    options = ModelOptions.model_validate(found["args"])
    assert (options.engine.name, options.engine.limits) == ("vllm", {"max_model_len": 2048.0})
    assert "engine" not in applications(BOT)["desk--r1"]["args"], "else an upgrade would build all of them anew"


def test_the_table_divides_the_requests_and_names_the_mirror():
    canary = replace(CANARY, trial=TRIAL, mirror_share=0.25)
    gone = replace(LIVE, number=3, phase=Phase.GONE)
    table = route_table([replace(BOT, revisions=(LIVE, canary, gone))], AROUND)
    (route,) = table.routes
    assert [(each.app, each.weight) for each in route.backends] == [("desk--r1", 8500), ("desk--r2", 1500)]
    assert (route.mirror.app, route.mirror.share, route.judge_app) == ("desk--r2", 0.25, "desk--judge2")
    assert route.live == 1
    assert RouteTable.model_validate(table.model_dump(mode="json")) == table
    assert table.auth == "none"


def test_a_deployment_that_comes_up_has_a_route_that_leads_nowhere_yet():
    table = route_table([replace(BOT, revisions=(replace(LIVE, phase=Phase.STARTING),))], AROUND)
    assert table.route("desk").backends == ()
    draining = replace(LIVE, phase=Phase.DRAINING, weight=0)
    live = replace(LIVE, number=2)
    (route,) = route_table([replace(BOT, revisions=(draining, live))], AROUND).routes
    assert [each.revision for each in route.backends] == [2]
