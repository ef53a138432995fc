"""Both clients know every RPC of the contract, and repeat exactly those calls that a repetition cannot harm."""

from __future__ import annotations

from datetime import timedelta

import pytest
from athanor.v1 import (
    audit_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    job_service_pb2,
    model_service_pb2,
    options_pb2,
    token_service_pb2,
)
from google.protobuf import message_factory

from cluster.client import AsyncAthanorClient, AthanorClient, streams
from cluster.client import deployment_calls as deployments
from cluster.client import installation_calls as installation
from cluster.client import job_calls as jobs
from cluster.client import model_calls as models
from cluster.client.call import Call, Listing

FILES = (
    audit_service_pb2,
    cluster_service_pb2,
    deployment_service_pb2,
    job_service_pb2,
    model_service_pb2,
    token_service_pb2,
)
UNARY = (
    jobs.create_job({"metadata": {"name": "bot"}}),
    jobs.get_job("u"),
    jobs.list_jobs(),
    jobs.update_job("u", priority=3),
    jobs.delete_job("u"),
    jobs.cancel_job("u"),
    jobs.pause_job("u"),
    jobs.resume_job("u"),
    jobs.retry_job("u"),
    jobs.list_job_events("u"),
    jobs.get_job_report("u"),
    models.get_model("m"),
    models.list_models(),
    models.set_alias("m", "a", 1),
    models.create_model_version("m", "/storage/m"),
    models.delete_model_version("m@1"),
    models.list_alias_history("m", "a"),
    models.rollback_alias("m", "a"),
    models.verify_model_version("m"),
    deployments.create_deployment(deployment_service_pb2.Deployment(name="d")),
    deployments.get_deployment("d"),
    deployments.list_deployments(),
    deployments.delete_deployment("d"),
    deployments.update_deployment(deployment_service_pb2.Deployment(name="d"), ["model"]),
    deployments.start_canary("d", "m@2"),
    deployments.set_traffic("d", 500),
    deployments.promote_deployment("d"),
    deployments.rollback_deployment("d"),
    deployments.list_deployment_events("d"),
    installation.server_info(),
    installation.list_nodes(),
    installation.get_queue(),
    installation.list_projects(),
    installation.set_quota("p", cluster_service_pb2.Quota(gpus=4)),
    installation.create_token("t", options_pb2.ROLE_VIEWER),
    installation.list_tokens(),
    installation.revoke_token("i"),
    installation.get_caller(),
    installation.list_audit_entries(),
    installation.verify_audit_log(),
)
CALLS: list[Call] = [each.page(10, "") if isinstance(each, Listing) else each for each in UNARY]
STREAMS = (
    streams.watch_jobs(),
    streams.stream_logs("u"),
    streams.stream_metrics("u"),
    streams.FileReading("m@1", "config.json"),
)
NOT_REPEATED = {
    *("DeleteModelVersion", "RollbackAlias", "DeleteDeployment", "CreateToken"),
    *("UpdateDeployment", "StartCanary", "Promote", "Rollback"),
}
INTERNAL = {"athanor.v1.DeploymentService.ReportObservations"}


def test_every_public_rpc_of_the_contract_can_be_asked() -> None:
    there = {
        method.full_name
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {each.method.full_name for each in (*CALLS, *STREAMS)} == there - INTERNAL


@pytest.mark.parametrize("asked", [*CALLS, *STREAMS], ids=lambda asked: asked.method.name)
def test_requests_and_responses_are_those_of_the_method(asked: Call) -> None:
    request = asked.request() if callable(asked.request) else asked.request
    assert request.DESCRIPTOR is asked.method.input_type
    assert asked.response is message_factory.GetMessageClass(asked.method.output_type)


def test_only_what_a_repetition_may_harm_is_asked_once() -> None:
    assert {call.method.name for call in CALLS if not call.is_repeatable} == NOT_REPEATED


@pytest.mark.parametrize(
    "call",
    [
        models.set_alias("m", "a", 1, expected_version=0),
        models.rollback_alias("m", "a", expected_version=2),
        jobs.update_job("u", priority=1, etag="x"),
        jobs.delete_job("u", etag="x"),
    ],
    ids=lambda call: call.method.name,
)
def test_what_holds_under_a_condition_is_asked_once(call: Call) -> None:
    assert not call.is_repeatable


def test_both_clients_offer_the_same() -> None:
    offered = [{name for name in dir(client) if name[0] != "_"} for client in (AthanorClient, AsyncAthanorClient)]
    assert offered[0] == offered[1]
    assert AthanorClient.get_job.__doc__ == AsyncAthanorClient.get_job.__doc__ == jobs.get_job.__doc__


def test_an_update_names_what_it_changes_and_nothing_else() -> None:
    request = jobs.update_job("u", labels={}, max_run_duration=timedelta(hours=2)).request
    assert sorted(request.update_mask.paths) == ["labels", "max_run_duration"]
    assert request.job.max_run_duration.seconds == 7200
    taken_away = jobs.update_job("u", max_run_duration=0).request
    assert not taken_away.job.HasField("max_run_duration")
    assert list(taken_away.update_mask.paths) == ["max_run_duration"]


def test_a_dry_run_has_no_request_id_to_name() -> None:
    assert jobs.create_job({}, request_id="mine").request_id == "mine"
    assert jobs.create_job({}, request_id="mine", validate_only=True).request_id == ""


def test_a_log_that_was_cut_goes_on_with_its_attempt_and_without_its_tail() -> None:
    reading = streams.stream_logs("u", tail_lines=5, role="student", rank=1)
    assert reading.request().tail_lines == 5
    assert reading.take(job_service_pb2.StreamJobLogsResponse(data=b"x", next_offset=90, attempt=2)) == b"x"
    again = reading.request()
    assert (again.after_offset, again.attempt, again.tail_lines, again.role, again.rank) == (90, 2, 0, "student", 1)


def test_metrics_go_on_behind_the_step_that_they_went_back_to() -> None:
    reading = streams.stream_metrics("u")
    for step, rewound in ((1, False), (2, False), (1, True)):
        reading.take(job_service_pb2.StreamJobMetricsResponse(step=step, rewound=rewound))
    assert reading.request().after_step == 1


def test_a_bookmark_moves_the_cursor_and_is_not_shown() -> None:
    watch = streams.watch_jobs()
    assert watch.take(job_service_pb2.WatchJobsResponse(resource_version=12)) is None
    assert watch.request().after_resource_version == 12
