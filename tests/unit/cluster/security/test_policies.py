from __future__ import annotations

from collections.abc import Mapping

import pytest
from athanor.v1 import options_pb2
from athanor.v1.job_service_pb2 import CreateJobRequest
from google.protobuf import descriptor_pb2, descriptor_pool

from cluster.errors import PermissionDenied, StartUpError
from cluster.security.caller import Caller, Role
from cluster.security.policies import MethodPolicy, policies_of
from cluster.server import _FILES


def made_up(policies: Mapping[str, options_pb2.Policy | None]) -> object:
    """A file with one service, whose methods carry these policies."""
    file = descriptor_pb2.FileDescriptorProto(name="made_up.proto", package="made.up", syntax="proto3")
    file.message_type.add(name="Empty")
    service = file.service.add(name="Service")
    for name, policy in policies.items():
        method = service.method.add(name=name, input_type=".made.up.Empty", output_type=".made.up.Empty")
        if policy is not None:
            method.options.Extensions[options_pb2.policy].CopyFrom(policy)
    return descriptor_pool.DescriptorPool().AddSerializedFile(file.SerializeToString())


VIEW = options_pb2.Policy(access=options_pb2.ACCESS_TOKEN, role=options_pb2.ROLE_VIEWER)


def test_every_method_of_ours_has_one() -> None:
    policies = policies_of(_FILES)
    assert policies["/athanor.v1.JobService/GetJob"] == MethodPolicy("athanor.v1.JobService/GetJob", Role.VIEWER, False)
    assert policies["/athanor.v1.TokenService/CreateToken"].role is Role.ADMIN
    assert policies["/athanor.v1.TokenService/CreateToken"].audited
    ours = {name for name in policies if "WorkerService" in name} | {"/athanor.v1.DeploymentService/ReportObservations"}
    assert ours == {name for name, policy in policies.items() if policy.role is None}


@pytest.mark.parametrize(
    "policy",
    [
        None,
        options_pb2.Policy(),
        options_pb2.Policy(role=options_pb2.ROLE_ADMIN),
        options_pb2.Policy(access=options_pb2.ACCESS_TOKEN),
        options_pb2.Policy(access=options_pb2.ACCESS_TOKEN, role=77),
        # Its messages have no `validate_only`.
        options_pb2.Policy(access=options_pb2.ACCESS_TOKEN, role=2, role_to_validate=options_pb2.ROLE_VIEWER),
    ],
)
def test_a_method_that_does_not_say_who_may_call_it_stops_the_start(policy: options_pb2.Policy | None) -> None:
    with pytest.raises(StartUpError, match=r"made\.up\.Service\.Forgotten") as refused:
        policies_of([made_up({"Fine": VIEW, "Forgotten": policy})])
    assert refused.value.reason == "METHOD_WITHOUT_POLICY"
    assert "Fine" not in refused.value.message


def test_a_role_may_what_lower_ones_may() -> None:
    policy = policies_of([made_up({"Change": options_pb2.Policy(access=1, role=options_pb2.ROLE_SUBMITTER)})])
    change = policy["/made.up.Service/Change"]
    change.check(Caller("a", Role.SUBMITTER))
    change.check(Caller("a", Role.ADMIN))
    with pytest.raises(PermissionDenied, match="needs a token of role submitter; 'a' has viewer"):
        change.check(Caller("a", Role.VIEWER))


def test_whoever_may_only_see_may_check_what_others_make() -> None:
    create = policies_of(_FILES)["/athanor.v1.JobService/CreateJob"]
    viewer, checks, makes = Caller("ann", Role.VIEWER), CreateJobRequest(validate_only=True), CreateJobRequest()
    create.check(viewer)  # nothing is read yet, and it may be a check
    create.check(viewer, checks)
    create.check(Caller("bob", Role.SUBMITTER), makes)
    with pytest.raises(PermissionDenied, match="needs a token of role submitter; 'ann' has viewer, which may check"):
        create.check(viewer, makes)


def test_the_methods_that_a_viewer_may_check_are_those_that_can_be_checked() -> None:
    methods = [method for file in _FILES for each in file.services_by_name.values() for method in each.methods]
    checkable = {each.full_name for each in methods if "validate_only" in each.input_type.fields_by_name}
    lower = {
        policy.method.replace("/", ".")
        for policy in policies_of(_FILES).values()
        if policy.role_to_validate is not None
    }
    assert checkable == lower != set()


def test_what_is_audited_answers_once() -> None:
    """An entry is written when a call is answered: a stream has no such moment."""
    methods = [method for file in _FILES for each in file.services_by_name.values() for method in each.methods]
    policies = policies_of(_FILES)
    streams = {f"/{each.containing_service.full_name}/{each.name}" for each in methods if each.server_streaming}
    assert streams
    assert not [name for name in streams if policies[name].audited]
