"""Replicas by load on the wire are those that are stored, with their defaults; and where gRPC is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from athanor.v1 import deployment_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from cluster.deployment_wire import autoscaling_from_proto, deployment_to_proto
from cluster.errors import InvalidInput
from cluster.store.deployment_records import Autoscaling, DeploymentState, StoredDeployment

BOT = StoredDeployment(
    "bot", "m", "m@1", "/models/m", 1, 1.0, 0.0, DeploymentState.READY, "", 0, 0, "http://serve.example:8000/bot/v1"
)


@pytest.mark.parametrize(
    "stored",
    [Autoscaling(1, 4), Autoscaling(0, 2, 2.5), Autoscaling(0, 1, 1.0, scale_up_delay_s=0.0, scale_down_delay_s=1.5)],
)
def test_replicas_by_load_come_back_as_they_went(stored):
    message = deployment_to_proto(replace(BOT, autoscaling=stored), None).autoscaling
    assert autoscaling_from_proto(message, "autoscaling") == stored


def test_what_is_left_out_has_its_default():
    assert autoscaling_from_proto(pb.Autoscaling(max_replicas=3), "autoscaling") == Autoscaling(0, 3, 8.0, 30.0, 600.0)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"max_replicas": 0}, "a.max_replicas"),
        ({"min_replicas": 5}, "a.min_replicas"),
        ({"target_ongoing_requests": float("nan")}, "a.target_ongoing_requests"),
        ({"scale_up_delay": Duration(seconds=-1)}, "a.scale_up_delay"),
        ({"scale_down_delay": Duration(seconds=86401)}, "a.scale_down_delay"),
    ],
)
def test_wrong_bounds_are_named(wrong, field):
    with pytest.raises(InvalidInput) as caught:
        autoscaling_from_proto(pb.Autoscaling(**{"max_replicas": 4, **wrong}), "a")
    assert field in [violation.path for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("endpoint", "port", "said"), [(BOT.endpoint, 9000, "serve.example:9000"), (BOT.endpoint, None, ""), ("", 9000, "")]
)
def test_the_address_of_grpc_is_told_where_there_is_one(endpoint, port, said):
    assert deployment_to_proto(replace(BOT, endpoint=endpoint), port).grpc_endpoint == said
