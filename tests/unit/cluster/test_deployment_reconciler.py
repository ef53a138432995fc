"""What users are told of their deployments while Serve keeps quiet, or says no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from fakes import World

from cluster.deployer import DeploymentStatus
from cluster.deployment_reconciler import DeploymentReconciler
from cluster.errors import RayError, RayRefused, RayUnreachable
from cluster.store.model_rows import NewModel
from cluster.store.records import DeploymentState, StoredDeployment

READY, FAILED = DeploymentState.READY, DeploymentState.FAILED
BOT = StoredDeployment(
    "bot", "m", "m@1", "/models/m", 1, 1.0, 0.0, DeploymentState.PENDING, "waits", 0, 0, "http://x/v1"
)


class Serving:
    """Answers with what the test says, or raises it."""

    def __init__(self) -> None:
        self.answer: Mapping[str, DeploymentStatus] | RayError = {}

    async def apply(
        self, deployments: Sequence[StoredDeployment], manifests: Mapping[str, str]
    ) -> Mapping[str, DeploymentStatus]:
        if isinstance(self.answer, RayError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("error", [RayUnreachable("SERVE_UNREACHABLE", "no answer"), RayRefused("SERVE_REFUSED", "no")])
async def test_serves_trouble_is_told_by_each_deployment(world: World, error: RayError) -> None:
    serving = Serving()
    reconciler = DeploymentReconciler(world.settings, world.store, serving)
    world.store.create_model(NewModel("m", "/models/m", "", 0), "", "")
    world.store.create_deployment(BOT)
    serving.answer = error
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.state, stored.message) == (DeploymentState.PENDING, error.message)
    for state, message, then in (
        (READY, "answers requests", (DeploymentState.DEPLOYING, error.message)),
        (FAILED, "no such model", (FAILED, "no such model")),
    ):
        serving.answer = {"bot": DeploymentStatus(state, message, "http://x/v1")}
        await reconciler.round()
        assert world.store.get_deployment("bot").state is state
        serving.answer = error
        await reconciler.round()
        stored = world.store.get_deployment("bot")
        assert (stored.state, stored.message, stored.endpoint) == (*then, "http://x/v1")
    world.store.delete_deployment("bot")
    await reconciler.round()
    assert world.store.get_deployment("bot").state is DeploymentState.DELETING
