"""What is asked of a deployment over the wire, against what is stored: canaries, their shares, engines."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from athanor.v1 import deployment_service_pb2 as pb
from fakes import World

from cluster.errors import InvalidInput
from cluster.services.deployment_wishes import DeploymentWishes
from cluster.store.deployment_records import Engine, Phase
from cluster.store.model_rows import NewModel


@pytest.fixture
def wishes(world: World) -> DeploymentWishes:
    """With a deployment `desk` of m@1 that answers."""
    for _ in range(2):
        world.store.create_model(NewModel("m", "/models/m", "", 0), "", "")
    found = DeploymentWishes(world.settings, world.store)
    made = found.create(pb.CreateDeploymentRequest(deployment=pb.Deployment(name="desk", model="m@1")))
    live = replace(made.revisions[0], phase=Phase.LIVE, weight=10_000)
    world.store.decide_deployment(made, replace(made, revisions=(live,)), [])
    return found


def canary(wishes: DeploymentWishes, **fields: object):
    return wishes.start_canary(pb.StartCanaryRequest(name="desk", model="m@2", **fields)).canary


def refused(wishes: DeploymentWishes, **fields: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        canary(wishes, **fields)
    (violation,) = caught.value.violations
    return violation.path


def test_a_canary_without_a_gate_may_be_asked_in_the_dark(wishes: DeploymentWishes) -> None:
    assert refused(wishes, mirror_share=1.5) == "mirror_share"
    assert refused(wishes, mirror_share=0.5, gate=pb.CanaryGate(teacher="m@1")) == "mirror_share"
    made = canary(wishes, mirror_share=0.25)
    assert (made.mirror_share, made.weight, made.trial) == (0.25, 0, None)


def test_a_canary_with_steps_begins_with_the_first(wishes: DeploymentWishes) -> None:
    gate = pb.CanaryGate(teacher="m@1", steps=[500, 2500])
    assert refused(wishes, weight=1000, gate=gate) == "weight"
    made = canary(wishes, gate=gate)
    assert (made.weight, made.mirror_share, made.trial.gate.steps) == (500, 1.0, (500, 2500))


def test_a_gate_on_examples_that_are_none_is_refused_at_once(wishes: DeploymentWishes, tmp_path) -> None:
    wrong = str(tmp_path / "none.jsonl")
    assert refused(wishes, gate=pb.CanaryGate(teacher="m@1", task_data=wrong)) == "gate.task_data"
    wish = pb.Deployment(name="desk", gate=pb.CanaryGate(teacher="m@1", task_data=wrong))
    request = pb.UpdateDeploymentRequest(deployment=wish)
    request.update_mask.paths.append("gate")
    with pytest.raises(InvalidInput, match=r"deployment\.gate\.task_data: there is no file"):
        wishes.update(request)


def test_examples_that_are_gone_keep_nobody_from_changing_something_else(wishes: DeploymentWishes, tmp_path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"prompt": "Where is it?", "completion": "Here."}')
    gate = pb.CanaryGate(teacher="m@1", task_data=str(path))
    request = pb.UpdateDeploymentRequest(deployment=pb.Deployment(name="desk", gate=gate, num_replicas=3))
    request.update_mask.paths.append("gate")
    wishes.update(request)
    path.unlink()
    request.update_mask.paths[:] = ["num_replicas"]
    assert wishes.update(request).num_replicas == 3
    request.update_mask.paths[:] = ["gate"]
    with pytest.raises(InvalidInput, match="there is no file"):
        wishes.update(request)


def test_a_gate_must_be_able_to_judge_the_model_that_is_asked_for(
    wishes: DeploymentWishes, world: World, tmp_path
) -> None:
    for name, architecture in (("writer", "LlamaForCausalLM"), ("reader", "BertForSequenceClassification")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        world.store.create_model(NewModel(name, str(tmp_path / name), "", 0), "", "")
    wish = pb.Deployment(name="desk", model="writer@1", gate=pb.CanaryGate(teacher="writer@1"))
    request = pb.UpdateDeploymentRequest(deployment=wish)
    request.update_mask.paths.extend(["model", "gate"])
    assert wishes.update(request).model == "writer@1"
    request.deployment.model = "reader@1"
    with pytest.raises(InvalidInput, match=r"deployment\.gate\.teacher: writer@1 writes, and reader@1 classifies"):
        wishes.update(request)
    request.update_mask.paths[:] = ["model"]
    assert wishes.update(request).model == "reader@1", "an update by hand is judged by nobody"


def test_an_engine_is_asked_for_and_changed(wishes: DeploymentWishes, world: World) -> None:
    wish = pb.Deployment(name="desk", engine=pb.EngineOptions(limits={"kv_tokens": 4096}))
    request = pb.UpdateDeploymentRequest(deployment=wish)
    request.update_mask.paths.append("engine")
    made = wishes.update(request)
    assert (made.engine, made.revisions[-1].engine) == (Engine(limits={"kv_tokens": 4096.0}),) * 2
    assert world.store.get_deployment("desk") == made
    assert len(wishes.update(request).revisions) == len(made.revisions), "it is so already"
