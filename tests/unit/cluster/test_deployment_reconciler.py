"""What users are told of their deployments while Serve keeps quiet, or says no; and how an alias moves one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import structlog
from athanor.v1 import deployment_service_pb2 as pb
from fakes import World

from cluster import rollout_wishes
from cluster.deployer import Endpoint, ServeView
from cluster.deployment_reconciler import DeploymentReconciler, Patience
from cluster.errors import RayError, RayRefused, RayUnreachable
from cluster.metrics import Metrics
from cluster.rollout import Seen, Shown, Target
from cluster.serve_plan import Plan
from cluster.services.deployment_wishes import DeploymentWishes
from cluster.store.deployment_records import DeploymentState, Gate, Phase, StoredDeployment
from cluster.store.model_rows import NewModel

READY, FAILED = DeploymentState.READY, DeploymentState.FAILED
WHERE = Endpoint("x", 8000)
BOT = StoredDeployment(
    "bot", "m", "m@1", "/models/m", 1, 1.0, 0.0, DeploymentState.PENDING, "waits", 0, 0, "http://x:8000/bot/v1"
)


class Serving:
    """Shows every application as the test says, or raises it."""

    def __init__(self) -> None:
        self.state: Shown | RayError = Shown.READY
        self.shown: dict[str, Seen] = {}
        self.is_routed = True
        self.plan = Plan()
        self.meanwhile: Callable[[], object] = lambda: None
        """Happens between a look at Serve and what is written then."""

    async def ours(self) -> set[str]:
        return set()

    async def apply(self, plan: Plan, before_write: Callable[[], Awaitable[None]] | None = None) -> ServeView:
        if isinstance(self.state, RayError):
            raise self.state
        self.meanwhile()
        if before_write is not None and plan != self.plan:
            await before_write()
        self.plan = plan
        seen = Seen(self.state, "no such model", 1 if self.state is Shown.READY else 0)
        shown = {each["name"]: seen for each in plan.applications} | self.shown
        return ServeView(WHERE, shown, is_routed=self.is_routed)


@pytest.fixture
def serving() -> Serving:
    return Serving()


@pytest.fixture
def reconciler(world: World, serving: Serving) -> DeploymentReconciler:
    for _ in range(2):
        world.store.create_model(NewModel("m", "/models/m", "", 0), "", "")
    return DeploymentReconciler(world.settings, world.store, serving)


async def rounds(reconciler: DeploymentReconciler, number: int = 2) -> None:
    for _ in range(number):
        await reconciler.round()


@pytest.mark.parametrize("error", [RayUnreachable("SERVE_UNREACHABLE", "no answer"), RayRefused("SERVE_REFUSED", "no")])
async def test_serves_trouble_is_told_by_each_deployment(world: World, serving, reconciler, error: RayError) -> None:
    world.store.create_deployment(BOT)
    serving.state = error
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.state, stored.message) == (DeploymentState.PENDING, error.message)
    for state, seen, then in (
        (Shown.FAILED, FAILED, (FAILED, "no such model")),
        (Shown.READY, READY, (DeploymentState.DEPLOYING, error.message)),
    ):
        serving.state = state
        await rounds(reconciler)
        assert world.store.get_deployment("bot").state is seen
        serving.state = error
        await reconciler.round()
        stored = world.store.get_deployment("bot")
        assert (stored.state, stored.message, stored.endpoint) == (*then, "http://x:8000/bot/v1")
    world.store.delete_deployment("bot")
    await reconciler.round()
    assert world.store.get_deployment("bot").state is DeploymentState.DELETING


async def test_it_is_ready_when_the_gateway_knows_it_too(world: World, serving, reconciler) -> None:
    world.store.create_deployment(BOT)
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.live.number, stored.state) == (1, DeploymentState.DEPLOYING)
    await reconciler.round()
    assert world.store.get_deployment("bot").state is READY


async def test_what_was_asked_is_observed_when_the_gateway_goes_by_it(world: World, serving, reconciler) -> None:
    world.store.create_deployment(BOT)
    await rounds(reconciler)
    before = world.store.get_deployment("bot")
    assert (before.generation, before.observed_generation) == (2, 2)
    wished = world.store.decide_deployment(before, replace(before, num_replicas=4), [])
    serving.is_routed = False
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.state, stored.generation, stored.observed_generation) == (READY, 3, 2)
    serving.is_routed, serving.shown = True, {"bot--r1": Seen(Shown.STARTING, "starting: 1 of 4", num_running=1)}
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.message, stored.observed_generation) == ("m@1 answers requests; starting: 1 of 4", 2)
    serving.shown = {}
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.state, stored.observed_generation) == (READY, 3)
    again = world.store.decide_deployment(replace(wished, observed_generation=2), replace(wished, num_replicas=2), [])
    assert again.observed_generation == 3, "what was seen is no decision's"
    serving.state = Shown.FAILED
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.state, stored.observed_generation) == (FAILED, 4)


async def test_a_plan_that_is_old_by_now_is_not_brought_to_serve(world: World, serving, reconciler) -> None:
    """As of a leader that stood still while another one took over."""
    world.store.create_deployment(BOT)
    serving.meanwhile = lambda: world.store.delete_deployment("bot")
    await reconciler.round()
    assert (serving.plan, world.store.get_deployment("bot").state) == (Plan(), DeploymentState.DELETING)


async def test_who_leads_no_more_brings_nothing_to_serve(world: World, serving) -> None:
    leads = [True]
    reconciler = DeploymentReconciler(world.settings, world.store, serving, leads=lambda: leads[0])
    world.store.create_model(NewModel("m", "/models/m", "", 0), "", "")
    world.store.create_deployment(BOT)
    serving.meanwhile = lambda: leads.__setitem__(0, False)
    await reconciler.round()
    assert serving.plan == Plan()
    leads[0], serving.meanwhile = True, lambda: None
    await reconciler.round()
    assert serving.plan.prefixes == ("bot",)


async def test_what_was_deleted_is_forgotten_when_serve_has_nothing_of_it(world: World, serving, reconciler) -> None:
    world.store.create_deployment(BOT)
    await rounds(reconciler)
    world.store.delete_deployment("bot")
    serving.shown = {"bot--r1": Seen(Shown.STARTING), "bot-b--r1": Seen(Shown.READY)}
    await reconciler.round()
    assert world.store.list_deployments() != []
    del serving.shown["bot--r1"]
    await reconciler.round()
    assert world.store.list_deployments() == []


async def test_an_alias_that_moves_brings_the_next_revision(world: World, serving, reconciler) -> None:
    world.store.set_alias("m", "champion", 1, None, "ann")
    world.store.create_deployment(
        StoredDeployment(**{**vars(BOT), "model": "m@champion", "follow_alias": True, "followed": "m@1"})
    )
    await rounds(reconciler)
    world.store.set_alias("m", "champion", 2, None, "ann")
    await rounds(reconciler, 3)
    assert world.store.get_deployment("bot").resolved_model == "m@2"
    assert {each["name"] for each in serving.plan.applications} >= {"bot--r2"}


async def test_one_that_cannot_be_tended_keeps_nobody_from_the_others(
    world: World, serving, reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.store.create_deployment(BOT)
    world.store.create_deployment(replace(BOT, name="other"))
    step = reconciler._step

    def broken(deployment: StoredDeployment, view: ServeView) -> StoredDeployment:
        if deployment.name == "bot":
            raise TypeError("a mistake of ours")
        return step(deployment, view)

    monkeypatch.setattr(reconciler, "_step", broken)
    with structlog.testing.capture_logs() as logs:
        await rounds(reconciler)
    assert world.store.get_deployment("other").state is READY
    assert [(each["event"], each["deployment"]) for each in logs if each["log_level"] == "error"] == [
        ("deployment.crashed", "bot")
    ] * 2


async def test_an_alias_is_not_followed_into_a_gate_without_a_teacher(world: World, serving, reconciler) -> None:
    world.store.set_alias("m", "champion", 1, None, "ann")
    wish = {**vars(BOT), "model": "m@champion", "follow_alias": True, "followed": "m@1", "gate": Gate()}
    world.store.create_deployment(StoredDeployment(**wish))
    await rounds(reconciler)
    world.store.set_alias("m", "champion", 2, None, "ann")
    await rounds(reconciler, 3)
    stored = world.store.get_deployment("bot")
    assert (stored.resolved_model, len(stored.revisions)) == ("m@1", 1)
    newest = world.store.deployment_decisions("bot", None, 10)[0].decision
    assert newest.reason == "ALIAS_NOT_FOLLOWED"
    assert "no teacher" in newest.message
    mended = pb.UpdateDeploymentRequest(deployment=pb.Deployment(name="bot", gate=pb.CanaryGate(teacher="m@1")))
    mended.update_mask.paths.append("gate")
    DeploymentWishes(world.settings, world.store).update(mended)
    await rounds(reconciler, 2)
    assert world.store.get_deployment("bot").canary.model == "m@2", "with a gate that can judge it, it comes"


async def test_a_canary_is_seen_by_prometheus_until_it_is_over(world: World, serving, reconciler) -> None:
    reconciler.metrics = Metrics()
    world.store.create_deployment(BOT)
    await rounds(reconciler)
    stored = world.store.get_deployment("bot")
    step = rollout_wishes.start_canary(stored, Target("m@2", "/models/m"), 2500, "ann")
    world.store.decide_deployment(stored, step.deployment, step.decisions)
    await rounds(reconciler)
    value = reconciler.metrics.registry.get_sample_value
    assert world.store.get_deployment("bot").canary.phase is Phase.CANARY
    assert value("athanor_canary_weight", {"deployment": "bot"}) == 0.25
    serving.shown = {"bot--r2": Seen(Shown.FAILED, "gone")}
    await rounds(reconciler)
    assert value("athanor_canary_weight", {"deployment": "bot"}) is None
    decided = {"deployment": "bot", "decision": "rolled_back"}
    assert value("athanor_canary_decision_total", decided) == 1


async def test_a_canary_that_is_deleted_with_its_deployment_is_seen_no_more(world: World, serving, reconciler) -> None:
    reconciler.metrics = Metrics()
    world.store.create_deployment(BOT)
    await rounds(reconciler)
    stored = world.store.get_deployment("bot")
    step = rollout_wishes.start_canary(stored, Target("m@2", "/models/m"), 2500, "ann")
    world.store.decide_deployment(stored, step.deployment, step.decisions)
    await rounds(reconciler)
    value = reconciler.metrics.registry.get_sample_value
    assert value("athanor_canary_weight", {"deployment": "bot"}) == 0.25
    world.store.delete_deployment("bot")
    await reconciler.round()
    assert value("athanor_canary_weight", {"deployment": "bot"}) is None


@pytest.mark.parametrize(
    ("name", "grace_s"), [("bot--r1", 60.0), ("bot--judge2", 900.0), ("bot--judge2--r1", 60.0), ("judge2--r1", 60.0)]
)
def test_an_unhealthy_application_has_failed_after_its_grace(name: str, grace_s: float) -> None:
    now_s = [0.0]
    patience = Patience(60.0, 900.0, lambda: now_s[0])
    ill = {name: Seen(Shown.UNHEALTHY, "dies", 1)}
    for at_s, state in ((0.0, Shown.UNHEALTHY), (grace_s - 1, Shown.UNHEALTHY), (grace_s, Shown.FAILED)):
        now_s[0] = at_s
        assert patience.judge(ill)[name].state is state
    assert patience.judge({name: Seen(Shown.READY)})[name].state is Shown.READY
    assert patience.judge(ill)[name].state is Shown.UNHEALTHY, "its time begins anew"


async def test_a_judge_that_loads_its_teacher_again_ends_no_canary(world: World, serving, reconciler) -> None:
    world.store.create_deployment(BOT)
    await rounds(reconciler)
    now_s = [0.0]
    settings = world.settings
    reconciler._patience = Patience(settings.unhealthy_grace_s, settings.revision_timeout_s, lambda: now_s[0])
    asked = pb.StartCanaryRequest(name="bot", model="m@2", gate=pb.CanaryGate(teacher="m@1"))
    DeploymentWishes(settings, world.store).start_canary(asked)
    await rounds(reconciler)
    serving.shown = {"bot--judge2": Seen(Shown.UNHEALTHY, "loads its teacher")}
    for now_s[0] in (0.0, settings.revision_timeout_s - 1):
        await reconciler.round()
        assert world.store.get_deployment("bot").canary.phase is Phase.CANARY
    now_s[0] = settings.revision_timeout_s
    await reconciler.round()
    stored = world.store.get_deployment("bot")
    assert (stored.canary, "its judge has failed" in stored.newest.message) == (None, True)
