"""Which method asks for what: read once from the contract, where each RPC carries its policy as an option.

A method without one stops the start-up, so nobody can forget it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from athanor.v1 import options_pb2
from google.protobuf import descriptor_pb2

from cluster.errors import PermissionDenied, StartUpError
from cluster.security.caller import Caller, Role


@dataclass(frozen=True)
class MethodPolicy:
    """What one method asks for."""

    method: str
    """`athanor.v1.JobService/GetJob`."""
    role: Role | None
    """The least role of the token; None: the request itself carries a lease."""
    audited: bool

    def check(self, caller: Caller) -> None:
        """PermissionDenied / ROLE_TOO_LOW."""
        if self.role is not None and caller.role < self.role:
            needs, has = (role.name.lower() for role in (self.role, caller.role))
            message = f"{self.method} needs a token of role {needs}; {caller.name!r} has {has}"
            raise PermissionDenied("ROLE_TOO_LOW", message)


def policies_of(files: Iterable[Any]) -> Mapping[str, MethodPolicy]:
    """`/athanor.v1.JobService/GetJob` -> its policy, for all services of these file descriptors.

    StartUpError / METHOD_WITHOUT_POLICY names all that have none, or one that says nothing.
    """
    methods = [method for file in files for each in file.services_by_name.values() for method in each.methods]
    without = [method.full_name for method in methods if not _is_whole(_option(method))]
    if without:
        message = f"nothing says who may call {', '.join(without)}; give each an option (policy) in its proto file"
        raise StartUpError("METHOD_WITHOUT_POLICY", message)
    return {f"/{policy.method}": policy for policy in map(_policy, methods)}


def _option(method: Any) -> options_pb2.Policy:
    """By way of bytes: a descriptor of another pool holds the option as an unknown field."""
    read = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    return read.Extensions[options_pb2.policy]


def _is_whole(policy: options_pb2.Policy) -> bool:
    if policy.access == options_pb2.ACCESS_LEASE:
        return True
    return policy.access == options_pb2.ACCESS_TOKEN and int(policy.role) in [int(role) for role in Role]


def _policy(method: Any) -> MethodPolicy:
    option = _option(method)
    role = Role(option.role) if option.access == options_pb2.ACCESS_TOKEN else None
    return MethodPolicy(f"{method.containing_service.full_name}/{method.name}", role, option.audited)
