"""The questions to ModelService that have one answer, as requests."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

from athanor.v1 import model_service_pb2 as pb

from cluster.client.call import Call, Listing, call

SERVICE = pb.DESCRIPTOR.services_by_name["ModelService"]
FILES_TIMEOUT_S = 6 * 3600.0
"""The deadline where the control plane copies or reads a whole model."""


def get_model(reference: str) -> Call[pb.ModelVersion]:
    """One version, by `name@alias` or `name@version`; a bare `name` is its newest."""
    request = pb.GetModelVersionRequest(reference=reference)
    return call(SERVICE, "GetModelVersion", request, pb.GetModelVersionResponse, lambda found: found.model_version)


def list_models(name: str = "", *, limit: int = 100) -> Listing[pb.ModelVersion]:
    """By name, newest first, over all pages, at most `limit`."""

    def page(size: int, token: str) -> Call[tuple[Sequence[pb.ModelVersion], str]]:
        request = pb.ListModelVersionsRequest(name=name, page_size=size, page_token=token)
        return call(
            SERVICE,
            "ListModelVersions",
            request,
            pb.ListModelVersionsResponse,
            lambda found: (found.model_versions, found.next_page_token),
        )

    return Listing(page, limit)


def set_alias(name: str, alias: str, version: int, *, expected_version: int | None = None) -> Call[pb.ModelVersion]:
    """Point an alias at a version; with `expected_version` only if it points there now (then never repeated)."""
    request = pb.SetAliasRequest(name=name, alias=alias, version=version, expected_version=expected_version)
    return call(SERVICE, "SetAlias", request, pb.SetAliasResponse, lambda response: response.model_version)


def create_model_version(
    name: str, path: str | Path, description: str = "", *, request_id: str | None = None
) -> Call[pb.ModelVersion]:
    """Make a version of a model directory on the cluster's storage. Safe to repeat, as `create_job`.

    A relative path means "from where this program runs".
    """
    place = str(Path(path).expanduser().absolute())
    request = pb.CreateModelVersionRequest(
        name=name, path=place, description=description, request_id=request_id or str(uuid.uuid4())
    )
    return call(
        SERVICE,
        "CreateModelVersion",
        request,
        pb.CreateModelVersionResponse,
        lambda made: made.model_version,
        timeout_s=FILES_TIMEOUT_S,
    )


def delete_model_version(reference: str) -> Call[None]:
    """Forget a version and its files. Not repeated: the second call would find it gone."""
    request = pb.DeleteModelVersionRequest(reference=reference)
    return call(SERVICE, "DeleteModelVersion", request, pb.DeleteModelVersionResponse, lambda _: None)


def list_alias_history(name: str, alias: str) -> Call[Sequence[pb.AliasMove]]:
    """Where an alias pointed, newest first."""
    request = pb.ListAliasHistoryRequest(name=name, alias=alias)
    return call(SERVICE, "ListAliasHistory", request, pb.ListAliasHistoryResponse, lambda found: found.moves)


def rollback_alias(name: str, alias: str, *, expected_version: int | None = None) -> Call[pb.ModelVersion]:
    """Point an alias at the version before. Not repeated: a second one would go back further."""
    request = pb.RollbackAliasRequest(name=name, alias=alias, expected_version=expected_version)
    return call(SERVICE, "RollbackAlias", request, pb.RollbackAliasResponse, lambda response: response.model_version)


def delete_alias(name: str, alias: str, *, expected_version: int | None = None) -> Call[None]:
    """Take an alias away; its versions and its history stay. Not repeated: the second call would find it gone."""
    request = pb.DeleteAliasRequest(name=name, alias=alias, expected_version=expected_version)
    return call(SERVICE, "DeleteAlias", request, pb.DeleteAliasResponse, lambda _: None)


def verify_model_version(reference: str) -> Call[pb.VerifyModelVersionResponse]:
    """Let the control plane read every file of a version and compare it with its manifest."""
    request = pb.VerifyModelVersionRequest(reference=reference)
    return call(
        SERVICE,
        "VerifyModelVersion",
        request,
        pb.VerifyModelVersionResponse,
        lambda response: response,
        timeout_s=FILES_TIMEOUT_S,
    )
