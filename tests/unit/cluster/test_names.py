"""A name ends where its last letter does: no line break behind it."""

from __future__ import annotations

import pytest
from athanor.v1 import deployment_service_pb2, job_pb2, model_service_pb2
from fakes import World
from sqlalchemy.exc import TimeoutError as PoolTimeout

from cluster.errors import InvalidInput, StoreUnavailable
from cluster.services.deployments import DeploymentService
from cluster.services.models import ModelService
from cluster.services.submission import check_job, check_request_id


def fields(caught: pytest.ExceptionInfo[InvalidInput]) -> list[str]:
    return [violation.path for violation in caught.value.violations]


def test_of_a_job_and_its_labels(world: World) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_job(world.store, job_pb2.Job(name="a\n", kind="FineTune", labels={"team\n": "x"}))
    assert fields(caught) == ["metadata.name", "metadata.labels['team\\n']"]


def test_of_a_request() -> None:
    with pytest.raises(InvalidInput):
        check_request_id("r-1\n")


async def test_of_a_deployment(world: World) -> None:
    wish = deployment_service_pb2.Deployment(name="desk\n", model="bot")
    with pytest.raises(InvalidInput) as caught:
        await DeploymentService(world.settings, world.store).CreateDeployment(
            deployment_service_pb2.CreateDeploymentRequest(deployment=wish), None
        )
    assert fields(caught) == ["deployment.name"]


async def test_of_an_alias(world: World) -> None:
    with pytest.raises(InvalidInput) as caught:
        await ModelService(world.settings, world.store).SetAlias(
            model_service_pb2.SetAliasRequest(name="bot", alias="best\n", version=1), None
        )
    assert fields(caught) == ["alias"]


def test_a_store_that_cannot_be_asked_is_unavailable(world: World) -> None:
    with pytest.raises(StoreUnavailable, match="no connection is free"), world.store.database.read():
        raise PoolTimeout("no connection is free")
