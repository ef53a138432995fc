"""Gates and engines as they come over the wire: what is left out, what 0 means, and what is refused with its field."""

from __future__ import annotations

import pytest
from athanor.v1 import deployment_service_pb2 as pb

from cluster.canary import Kind
from cluster.deployment_wire import (
    deployment_to_proto,
    engine_from_proto,
    gate_from_proto,
    observation_from_proto,
)
from cluster.errors import InvalidInput
from cluster.store.deployment_records import (
    DeploymentState,
    Engine,
    Gate,
    Phase,
    Revision,
    StoredDeployment,
    Trial,
)


def test_what_is_left_out_is_the_default():
    assert gate_from_proto(pb.CanaryGate(), "gate") == Gate()


def test_zero_means_zero_where_it_can():
    wish = pb.CanaryGate(max_divergence_increase=0, max_agreement_loss=0, min_observations=0)
    gate = gate_from_proto(wish, "gate")
    assert (gate.max_divergence_increase, gate.max_agreement_loss, gate.min_observations) == (0, 0, 0)
    none_lost = gate_from_proto(pb.CanaryGate(task_data="/d.csv", max_task_loss=0), "gate")
    assert none_lost.max_task_loss == 0


@pytest.mark.parametrize(
    ("field", "values", "words"),
    [
        ("mirror_share", {"mirror_share": 0}, "0 shows its gate nothing"),
        ("mirror_share", {"mirror_share": 1.5}, "1.5 is not between 0 and 1"),
        ("max_error_rate", {"max_error_rate": 0}, "0 can be shown of no canary"),
        ("error_budget", {"error_budget": 0}, "needs evidence without end"),
        ("error_budget", {"error_budget": 1}, "1 allows anything"),
        ("max_latency_ratio", {"max_latency_ratio": 0}, "no factor from 1"),
        ("max_divergence_increase", {"max_divergence_increase": float("nan")}, "is not between"),
        ("min_observations", {"min_observations": -1}, "-1 is not between 0 and a million"),
        ("max_task_loss", {"max_task_loss": 0.1}, "name them in task_data"),
        ("steps", {"steps": [2500, 500]}, "do not grow"),
        ("steps", {"steps": [5000, 10000]}, "below 10000"),
        ("steps", {"steps": [0, 500]}, "from above 0"),
        ("step_requests", {"step_requests": 5}, "name the shares in steps"),
    ],
)
def test_a_wrong_gate_names_the_field(field, values, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        gate_from_proto(pb.CanaryGate(**values), "gate")
    assert [each.path for each in caught.value.violations] == [f"gate.{field}"]


@pytest.mark.parametrize(
    ("field", "name", "limits", "words"),
    [
        ("engine.name", "tgi", {}, "'tgi' is no engine; there are transformers and vllm"),
        ("engine.limits[kv]", "", {"kv": 1}, "knows no such limit; it knows max_model_len"),
        ("engine.limits[kv_tokens]", "", {"kv_tokens": 0}, "0 is no whole number from 1"),
        ("engine.limits[max_rows]", "", {"max_rows": 1.5}, "1.5 is no whole number"),
        ("engine.limits[gpu_memory_utilization]", "vllm", {"gpu_memory_utilization": 2}, "2 is no number"),
    ],
)
def test_a_wrong_engine_names_the_field(field, name, limits, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        engine_from_proto(pb.EngineOptions(name=name, limits=limits), "engine")
    assert [each.path for each in caught.value.violations] == [field]


def test_a_deployment_tells_its_engine_and_by_what_its_canary_is_judged():
    engine = Engine("transformers", {"kv_tokens": 4096.0})
    gate = Gate(task_data="/d.csv", max_task_loss=0.0, steps=(500, 2500), max_agreement_loss=0.0)
    canary = Revision(2, "m@2", "/m/2", phase=Phase.CANARY, trial=Trial(gate, "t@1", "/t", "secret"), engine=engine)
    stored = StoredDeployment(
        *("d", "m@1", "m@1", "/m/1", 1, 1.0, 0.0, DeploymentState.READY, "", 0, 0), engine=engine, revisions=(canary,)
    )
    told = deployment_to_proto(stored)
    (revision,) = told.revisions
    assert gate_from_proto(revision.gate, "gate") == gate
    assert (revision.teacher, [each.name for each in revision.figures][-1]) == ("t@1", "task")
    assert engine_from_proto(told.engine, "engine") == engine_from_proto(revision.engine, "engine") == engine
    assert "secret" not in str(told)


def test_an_observation_of_no_kind_is_one_of_a_mirrored_request():
    assert observation_from_proto(pb.Observation(canary_failed=True)).kind is Kind.MIRRORED
    task = pb.Observation(kind=pb.OBSERVATION_KIND_TASK, stable_right=True, task_index=3, task_size=9)
    found = observation_from_proto(task)
    assert (found.kind, found.stable_right, found.task_index, found.task_size) == (Kind.TASK, True, 3, 9)
