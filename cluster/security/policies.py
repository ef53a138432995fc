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
    role_to_validate: Role | None = None
    """The least role of a call that only checks (`validate_only`); None: `role`."""

    def check(self, caller: Caller, request: Any = None) -> None:
        """PermissionDenied / ROLE_TOO_LOW. Without the request, which is not read yet: whatever may be asked in it."""
        only_checks = request is None or bool(getattr(request, "validate_only", False))
        least = self.role_to_validate if only_checks and self.role_to_validate is not None else self.role
        if least is not None and caller.role < least:
            raise PermissionDenied("ROLE_TOO_LOW", self._refusal(least, caller))

    def _refusal(self, least: Role, caller: Caller) -> str:
        needs, has = least.name.lower(), caller.role.name.lower()
        message = f"{self.method} needs a token of role {needs}; {caller.name!r} has {has}"
        may_validate = self.role_to_validate is not None and caller.role >= self.role_to_validate
        return f"{message}, which may check it only (validate_only; --dry-run)" if may_validate else message


def policies_of(files: Iterable[Any]) -> Mapping[str, MethodPolicy]:
    """`/athanor.v1.JobService/GetJob` -> its policy, for all services of these file descriptors.

    StartUpError / METHOD_WITHOUT_POLICY names all that have none, or one that says nothing.
    """
    methods = [method for file in files for each in file.services_by_name.values() for method in each.methods]
    without = [method.full_name for method in methods if not _is_whole(method)]
    if without:
        message = f"nothing says who may call {', '.join(without)}; give each an option (policy) in its proto file"
        raise StartUpError("METHOD_WITHOUT_POLICY", message)
    return {f"/{policy.method}": policy for policy in map(_policy, methods)}


def _option(method: Any) -> options_pb2.Policy:
    """By way of bytes: a descriptor of another pool holds the option as an unknown field."""
    read = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    return read.Extensions[options_pb2.policy]


def _is_whole(method: Any) -> bool:
    policy = _option(method)
    if policy.access == options_pb2.ACCESS_LEASE:
        return True
    roles = [int(role) for role in Role]
    if policy.access != options_pb2.ACCESS_TOKEN or policy.role not in roles:
        return False
    if policy.role_to_validate == options_pb2.ROLE_UNSPECIFIED:
        return True
    can_validate = "validate_only" in method.input_type.fields_by_name
    return can_validate and policy.role_to_validate in roles and policy.role_to_validate <= policy.role


def _policy(method: Any) -> MethodPolicy:
    option = _option(method)
    role = Role(option.role) if option.access == options_pb2.ACCESS_TOKEN else None
    to_validate = Role(option.role_to_validate) if option.role_to_validate else None
    name = f"{method.containing_service.full_name}/{method.name}"
    return MethodPolicy(name, role, option.audited, to_validate)
