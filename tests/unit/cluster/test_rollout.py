"""Stories of deployments, step by step: what is stored, what Serve shows, and what is decided next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster import canary, rollout_wishes
from cluster.errors import InvalidInput, PreconditionFailed
from cluster.rollout import NOT_SEEN, Look, Rules, Seen, Shown, Step, Target, advance, shares
from cluster.rollout_state import is_settled, state_of
from cluster.store.deployment_records import (
    DeploymentState,
    Engine,
    Gate,
    Phase,
    Revision,
    StoredDeployment,
    Trial,
)

READY, FAILED = Seen(Shown.READY, num_running=1), Seen(Shown.FAILED, "Ray gave up on it: no weights")
STARTING = Seen(Shown.STARTING, "replicas are starting")
GATE = Gate(max_duration_s=100.0)
FIRST = StoredDeployment(
    name="bot",
    model="m@champion",
    resolved_model="m@1",
    path="/m/1",
    num_replicas=1,
    cpus_per_replica=1.0,
    gpus_per_replica=0.0,
    state=DeploymentState.PENDING,
    message="",
    create_time_us=0,
    update_time_us=0,
    followed="m@1",
    revisions=(Revision(1, "m@1", "/m/1"),),
)


class Story:
    """One deployment over time; every step is decided by the code under test."""

    def __init__(self, deployment: StoredDeployment = FIRST) -> None:
        self.deployment = deployment
        self.reasons: list[str] = []
        self.now_s = 1.0
        self.rules = Rules(start_timeout_s=60.0, drain_s=5.0)

    def wish(self, step: Step) -> None:
        self._take(step)

    def look(
        self, *seen: Seen, after_s: float = 0.0, is_routed: bool = True, target: Target | None = None, judge=READY
    ) -> list[Phase]:
        """One round in which Serve shows these, by revision; the phases that follow."""
        self.now_s += after_s
        shown = dict(enumerate(seen, start=1))
        self._take(advance(self.deployment, Look(int(self.now_s * 1e6), shown, is_routed, target, judge), self.rules))
        return self.phases

    @property
    def phases(self) -> list[Phase]:
        return [each.phase for each in self.deployment.revisions]

    def observe(self, *seen: canary.Observation) -> None:
        """As the judge's reports are stored."""
        found = self.deployment.canary
        evidence = canary.observe(found.trial.gate, found.trial.evidence, seen)
        self._put(replace(found, trial=replace(found.trial, evidence=evidence)))

    def _put(self, revision: Revision) -> None:
        each = tuple(revision if one.number == revision.number else one for one in self.deployment.revisions)
        self.deployment = replace(self.deployment, revisions=each)

    def _take(self, step: Step) -> None:
        before = {each.number: each.phase for each in self.deployment.revisions}
        self.deployment = step.deployment
        for each in step.deployment.revisions:  # as the store does
            if before.get(each.number) is not each.phase:
                self._put(replace(each, phase_time_us=int(self.now_s * 1e6)))
        self.reasons += [decision.reason for decision in step.decisions]


@pytest.fixture
def live() -> Story:
    story = Story()
    story.look(READY)
    assert story.phases == [Phase.LIVE]
    story.reasons.clear()
    return story


def target(version: int, *, gate: Gate | None = None) -> Target:
    trial = Trial(gate, "t@1", "/t/1", "secret") if gate else None
    return Target(f"m@{version}", f"/m/{version}", trial)


def update(story: Story, version: int) -> None:
    story.wish(rollout_wishes.update(story.deployment, {"model": f"m@{version}"}, target(version), "ann"))


def start_canary(story: Story, version: int, weight: int = 0, gate: Gate | None = None) -> None:
    story.wish(rollout_wishes.start_canary(story.deployment, target(version, gate=gate), weight, "ann"))


def good(**changes) -> canary.Observation:
    return replace(canary.Observation(0.3, 0.3, 0.9, 0.9, 0.01, 0.01), **changes)


def test_the_first_revision_answers_when_it_is_ready_and_not_before():
    story = Story()
    assert story.look(NOT_SEEN) == story.look(STARTING) == [Phase.STARTING]
    assert shares(story.deployment) == {}
    assert story.look(READY) == [Phase.LIVE]
    assert (shares(story.deployment), story.reasons) == ({1: 10_000}, ["REVISION_LIVE"])


def test_a_first_revision_that_fails_stays_for_there_is_nothing_to_go_back_to():
    story = Story()
    assert story.look(FAILED, after_s=1000) == [Phase.STARTING]
    assert state_of(story.deployment, {1: FAILED}) == (DeploymentState.FAILED, FAILED.message)
    update(story, 2)
    assert story.phases == [Phase.GONE, Phase.STARTING]


def test_a_rolling_update_drains_the_old_one_and_only_then_takes_it_down(live):
    update(live, 2)
    assert live.look(READY, STARTING) == [Phase.LIVE, Phase.STARTING]
    assert shares(live.deployment) == {1: 10_000}
    assert live.look(READY, READY) == [Phase.DRAINING, Phase.LIVE]
    assert (shares(live.deployment), live.deployment.resolved_model) == ({2: 10_000}, "m@2")
    assert live.look(READY, READY, after_s=4) == [Phase.DRAINING, Phase.LIVE]
    assert live.look(READY, READY, after_s=6, is_routed=False) == [Phase.DRAINING, Phase.LIVE]
    assert live.look(READY, READY) == [Phase.GONE, Phase.LIVE]
    assert live.reasons == ["UPDATE_ASKED", "REVISION_LIVE"]


def test_a_revision_drains_from_when_the_gateway_knows_it_and_not_from_the_decision(live):
    update(live, 2)
    live.look(READY, READY)
    assert live.look(READY, READY, after_s=60, is_routed=False) == [Phase.DRAINING, Phase.LIVE]
    assert live.look(READY, READY, after_s=1) == [Phase.DRAINING, Phase.LIVE]
    before = live.deployment
    assert live.look(READY, READY, after_s=4) == [Phase.DRAINING, Phase.LIVE]
    assert live.deployment == before, "it is noted once"
    assert live.look(READY, READY, after_s=1) == [Phase.GONE, Phase.LIVE]


def test_an_update_that_fails_leaves_the_old_one_alone(live):
    update(live, 2)
    assert live.look(READY, FAILED) == [Phase.LIVE, Phase.GONE]
    assert (live.deployment.resolved_model, live.deployment.model) == ("m@1", "m@1")
    state, words = state_of(live.deployment, {1: READY})
    assert state is DeploymentState.READY
    assert "m@2 was taken back: Ray gave up on it: no weights" in words
    assert live.reasons == ["UPDATE_ASKED", "REVISION_FAILED"]


def test_an_update_that_does_not_come_up_in_time_is_given_up(live):
    update(live, 2)
    assert live.look(READY, STARTING, after_s=60) == [Phase.LIVE, Phase.STARTING]
    assert live.look(READY, STARTING, after_s=1) == [Phase.LIVE, Phase.GONE]
    assert "did not come up in time" in live.deployment.newest.message


def test_another_update_meanwhile_takes_the_place_of_the_first(live):
    update(live, 2)
    update(live, 3)
    assert (live.phases, live.deployment.model) == ([Phase.LIVE, Phase.GONE, Phase.STARTING], "m@3")
    assert live.look(READY, NOT_SEEN, READY) == [Phase.DRAINING, Phase.GONE, Phase.LIVE]
    assert (live.deployment.model, live.deployment.resolved_model) == ("m@3", "m@3")


def test_other_resources_during_an_update_keep_the_model_that_was_asked_for(live):
    update(live, 2)
    live.wish(rollout_wishes.update(live.deployment, {"cpus_per_replica": 2.0}, None, "ann"))
    assert (live.deployment.newest.model, live.deployment.model) == ("m@2", "m@2")
    live.look(READY, NOT_SEEN, FAILED)
    assert live.deployment.model == "m@1"


def test_resources_that_could_not_be_had_are_not_asked_for_again(live):
    """Neither by the next update nor by a canary: what counts is what answers."""
    for fall in (lambda: live.look(READY, FAILED), lambda: live.wish(rollout_wishes.roll_back(live.deployment, "ann"))):
        live.wish(rollout_wishes.update(live.deployment, {"cpus_per_replica": 1000.0}, None, "ann"))
        assert live.deployment.newest.cpus_per_replica == 1000.0
        fall()
        assert live.deployment.newest.phase is Phase.GONE
        assert live.deployment.cpus_per_replica == live.deployment.live.cpus_per_replica == 1.0
    update(live, 2)
    assert live.deployment.newest.cpus_per_replica == 1.0


def test_more_replicas_need_no_revision_and_more_cpus_do(live):
    live.wish(rollout_wishes.update(live.deployment, {"num_replicas": 3}, None, "ann"))
    assert (live.phases, live.deployment.num_replicas) == ([Phase.LIVE], 3)
    live.wish(rollout_wishes.update(live.deployment, {"cpus_per_replica": 2.0}, None, "ann"))
    assert live.phases == [Phase.LIVE, Phase.STARTING]
    assert (live.deployment.newest.model, live.deployment.newest.cpus_per_replica) == ("m@1", 2.0)


def test_the_same_model_again_changes_nothing(live):
    before = live.deployment
    step = rollout_wishes.update(before, {"model": "m@champion"}, target(1), "ann")
    assert (step.deployment, step.decisions) == (before, ())


def test_a_canary_takes_its_share_and_is_promoted_by_hand(live):
    start_canary(live, 2, weight=1000)
    with pytest.raises(PreconditionFailed, match="not up yet"):
        rollout_wishes.promote_canary(live.deployment, "ann")
    assert live.look(READY, READY) == [Phase.LIVE, Phase.CANARY]
    assert shares(live.deployment) == {1: 9000, 2: 1000}
    live.wish(rollout_wishes.set_traffic(live.deployment, 5000, 0.5, "ann"))
    assert shares(live.deployment) == {1: 5000, 2: 5000}
    live.wish(rollout_wishes.promote_canary(live.deployment, "ann"))
    assert (live.phases, live.deployment.model) == ([Phase.DRAINING, Phase.LIVE], "m@2")
    assert live.reasons == ["CANARY_ASKED", "CANARY_STARTED", "TRAFFIC_SET", "CANARY_PROMOTED"]


def test_a_canary_without_a_share_gets_none(live):
    start_canary(live, 2)
    live.look(READY, READY)
    assert (live.phases[1], shares(live.deployment)) == (Phase.CANARY, {1: 10_000, 2: 0})


def test_a_canary_with_a_gate_waits_for_its_judge(live):
    start_canary(live, 2, gate=GATE)
    assert live.look(READY, READY, judge=STARTING)[1] is Phase.STARTING
    assert live.look(READY, READY)[1] is Phase.CANARY
    assert live.deployment.canary.mirror_share == 1.0


def test_a_canary_with_a_gate_leaves_requests_to_compare_with(live):
    with pytest.raises(InvalidInput, match="weight: 10000 leaves its gate nothing to compare with"):
        start_canary(live, 2, weight=10_000, gate=GATE)
    start_canary(live, 2, weight=9_999, gate=GATE)
    live.look(READY, READY)
    with pytest.raises(InvalidInput, match="give less than 10000, or promote the canary"):
        rollout_wishes.set_traffic(live.deployment, 10_000, None, "ann")
    with pytest.raises(InvalidInput, match="mirror_share: 0 shows its gate nothing"):
        rollout_wishes.set_traffic(live.deployment, 500, 0.0, "ann")


def test_a_judge_that_cannot_come_up_ends_its_canary(live):
    start_canary(live, 2, gate=GATE)
    assert live.look(READY, READY, judge=FAILED) == [Phase.LIVE, Phase.GONE]
    assert "its judge" in live.deployment.newest.message


def test_a_judge_that_dies_for_good_ends_its_canary_at_once(live):
    start_canary(live, 2, weight=500, gate=GATE)
    live.look(READY, READY)
    assert live.look(READY, READY, judge=STARTING) == [Phase.LIVE, Phase.CANARY]
    assert live.look(READY, READY, judge=FAILED) == [Phase.LIVE, Phase.DRAINING]
    assert live.reasons[-1] == "CANARY_ROLLED_BACK"
    assert live.deployment.newest.message == f"its judge has failed: {FAILED.message}"


def test_what_a_judge_has_shown_before_it_died_counts(live):
    start_canary(live, 2, gate=GATE)
    live.look(READY, READY)
    live.observe(*[good()] * 200)
    assert live.look(READY, READY, judge=FAILED) == [Phase.DRAINING, Phase.LIVE]


def test_a_good_canary_is_promoted_by_what_was_seen(live):
    start_canary(live, 2, gate=GATE)
    live.look(READY, READY)
    live.observe(*[good()] * 10)
    assert live.look(READY, READY) == [Phase.LIVE, Phase.CANARY]
    live.observe(*[good()] * 200)
    assert live.look(READY, READY) == [Phase.DRAINING, Phase.LIVE]
    assert live.reasons[-1] == "CANARY_PROMOTED"


@pytest.mark.parametrize(
    "bad",
    [
        good(canary_divergence=2.0),
        good(canary_agreement=0.1),
        good(canary_latency_s=0.1),
        good(canary_failed=True),
    ],
)
def test_a_bad_canary_is_rolled_back_by_any_limit(live, bad):
    start_canary(live, 2, weight=500, gate=GATE)
    live.look(READY, READY)
    live.observe(*[bad] * 100)
    assert live.look(READY, READY) == [Phase.LIVE, Phase.DRAINING]
    assert shares(live.deployment) == {1: 10_000}
    live.look(READY, READY)
    assert live.look(READY, READY, after_s=5) == [Phase.LIVE, Phase.GONE]
    assert live.reasons == ["CANARY_ASKED", "CANARY_STARTED", "CANARY_ROLLED_BACK"]


def test_a_canary_that_nobody_could_judge_is_rolled_back_in_the_end(live):
    start_canary(live, 2, gate=GATE)
    live.look(READY, READY)
    assert live.look(READY, READY, after_s=100)[1] is Phase.CANARY
    assert live.look(READY, READY, after_s=1)[1] is Phase.DRAINING
    assert "undecided" in live.deployment.newest.message


def test_a_canary_whose_replicas_fail_for_good_is_rolled_back(live):
    start_canary(live, 2, weight=500)
    live.look(READY, READY)
    assert live.look(READY, FAILED) == [Phase.LIVE, Phase.DRAINING]


def test_one_canary_at_a_time_and_only_beside_one_that_answers(live):
    with pytest.raises(PreconditionFailed, match="no version of bot answers yet"):
        rollout_wishes.start_canary(FIRST, target(2), 0, "ann")
    start_canary(live, 2)
    with pytest.raises(PreconditionFailed, match="promote it or roll it back first"):
        start_canary(live, 3)


def test_rolling_back_ends_what_comes_or_goes_one_version_back(live):
    with pytest.raises(PreconditionFailed, match="no other version answered before"):
        rollout_wishes.roll_back(live.deployment, "ann")
    start_canary(live, 2, weight=500)
    live.look(READY, READY)
    live.wish(rollout_wishes.roll_back(live.deployment, "ann"))
    assert live.phases == [Phase.LIVE, Phase.DRAINING]
    update(live, 3)
    live.look(READY, READY, READY)
    live.wish(rollout_wishes.roll_back(live.deployment, "ann"))
    assert live.deployment.newest.model == "m@1", "a canary that was taken back never answered"
    live.look(READY, NOT_SEEN, READY, READY)
    assert (live.deployment.resolved_model, live.deployment.model) == ("m@1", "m@1")


@pytest.fixture
def following(live) -> Story:
    live.deployment = replace(live.deployment, follow_alias=True)
    return live


def test_an_alias_that_moves_moves_its_deployment_once(following):
    following.look(READY, target=target(2))
    assert following.phases == [Phase.LIVE, Phase.STARTING]
    assert following.look(READY, FAILED, target=target(2)) == [Phase.LIVE, Phase.GONE]
    assert following.look(READY, NOT_SEEN, target=target(2)) == [Phase.LIVE, Phase.GONE], "not tried for ever"
    assert following.deployment.model == "m@champion"
    following.look(READY, NOT_SEEN, target=target(3))
    assert following.phases[2] is Phase.STARTING


def test_an_alias_that_moves_back_ends_what_it_began(following):
    following.look(READY, target=target(2))
    assert following.look(READY, STARTING, target=target(1)) == [Phase.LIVE, Phase.GONE]
    assert following.deployment.followed == "m@1"


def test_an_alias_that_moves_brings_a_canary_where_there_is_a_gate(following):
    following.look(READY, target=target(2, gate=GATE))
    assert following.deployment.canary.model == "m@2"


def test_a_canary_that_an_alias_supersedes_drains_like_any_other(following):
    following.look(READY, target=target(2, gate=GATE))
    following.look(READY, READY)
    phases = following.look(READY, READY, after_s=60, target=target(3, gate=GATE))
    assert phases == [Phase.LIVE, Phase.DRAINING, Phase.STARTING], "the gateway does not know it yet"


def test_an_alias_without_a_teacher_to_judge_by_is_told_once(following):
    away = replace(target(2), trouble="no teacher")
    following.look(READY, target=away)
    following.look(READY, target=away)
    assert (following.reasons, following.phases) == (["ALIAS_NOT_FOLLOWED"], [Phase.LIVE])


def test_a_gate_that_is_mended_tries_what_it_could_not_judge(following):
    following.look(READY, target=replace(target(2), trouble="no teacher"))
    following.wish(rollout_wishes.update(following.deployment, {"gate": GATE}, None, "ann"))
    following.look(READY, target=target(2, gate=GATE))
    assert following.deployment.canary.model == "m@2"
    following.wish(rollout_wishes.roll_back(following.deployment, "ann"))
    following.wish(rollout_wishes.update(following.deployment, {"gate": STEPS}, None, "ann"))
    assert following.deployment.followed == "m@2", "what was tried is not tried again"


def test_going_back_by_hand_holds_until_the_alias_moves_again(following):
    following.look(READY, target=target(2))
    following.look(READY, READY, target=target(2))
    following.wish(rollout_wishes.roll_back(following.deployment, "ann"))
    following.look(READY, READY, READY, target=target(2))
    assert following.deployment.resolved_model == "m@1"
    assert following.look(NOT_SEEN, READY, READY, target=target(2))[2] is Phase.LIVE


def test_a_replica_that_is_replaced_takes_nothing_away_from_ready(live):
    ill = Seen(Shown.UNHEALTHY, "a replica died", num_running=1)
    assert state_of(live.deployment, {1: ill})[0] is DeploymentState.READY
    assert state_of(live.deployment, {1: replace(ill, num_running=0)})[0] is DeploymentState.DEPLOYING
    assert state_of(live.deployment, {1: NOT_SEEN})[0] is DeploymentState.PENDING


STEPS = Gate(max_duration_s=100.0, steps=(500, 2500, 5000), step_requests=10)


def users(num: int, *, failed: bool = False) -> list[canary.Observation]:
    return [canary.Observation(kind=canary.Kind.LIVE, canary_failed=failed)] * num


def ramp(live: Story) -> Story:
    start_canary(live, 2, weight=500, gate=STEPS)
    live.look(READY, READY)
    return live


def test_a_canary_with_steps_grows_as_its_users_fare_well(live):
    ramp(live).observe(*[good()] * 5, *users(9))
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 500
    live.observe(*users(1))
    live.look(READY, READY)
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 2500, "each step waits for its own"
    live.observe(*users(10))
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 5000
    assert live.reasons == ["CANARY_ASKED", "CANARY_STARTED", "CANARY_GREW", "CANARY_GREW"]


def test_a_canary_with_steps_is_promoted_after_the_last_alone(live):
    ramp(live).observe(*[good()] * 200)
    live.look(READY, READY)
    assert live.phases[1] is Phase.CANARY
    for _ in STEPS.steps:
        live.observe(*users(10))
        live.look(READY, READY)
    assert (live.phases[1], live.reasons[-1]) == (Phase.LIVE, "CANARY_PROMOTED")


def test_a_canary_with_steps_grows_no_more_when_something_speaks_against_it(live):
    ramp(live).observe(*users(9), good(canary_latency_s=1.0), *users(1))
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 500
    live.observe(*users(60, failed=True))
    assert live.look(READY, READY)[1] is Phase.DRAINING


def test_a_canary_with_steps_that_nobody_asks_is_rolled_back_in_the_end(live):
    ramp(live).observe(*[good()] * 200)
    assert live.look(READY, READY, after_s=99)[1] is Phase.CANARY
    assert live.look(READY, READY, after_s=2)[1] is Phase.DRAINING
    assert "its steps waited for users" in live.deployment.newest.message


def test_a_share_that_was_set_by_hand_goes_on_from_there(live):
    ramp(live)
    live.wish(rollout_wishes.set_traffic(live.deployment, 3000, None, "ann"))
    live.observe(*users(10))
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 5000


def test_a_share_that_was_lowered_by_hand_waits_for_users_again_and_none_is_held(live):
    ramp(live)
    for _ in range(2):
        live.observe(*[good()] * 100, *users(10))
        live.look(READY, READY)
    assert shares(live.deployment)[2] == 5000
    live.wish(rollout_wishes.set_traffic(live.deployment, 500, None, "ann"))
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 500, "those that came before were counted"
    live.wish(rollout_wishes.set_traffic(live.deployment, 0, None, "ann"))
    live.observe(*users(10))
    assert (live.look(READY, READY)[1], shares(live.deployment)[2]) == (Phase.CANARY, 0)
    live.wish(rollout_wishes.set_traffic(live.deployment, 500, None, "ann"))
    live.observe(*users(10))
    live.look(READY, READY)
    assert shares(live.deployment)[2] == 2500


def test_a_canary_without_a_gate_may_be_asked_in_the_dark(live):
    wish = replace(target(2), mirror_share=0.25)
    live.wish(rollout_wishes.start_canary(live.deployment, wish, 0, "ann"))
    assert live.deployment.canary.mirror_share == 0.25


def test_another_engine_comes_as_another_revision(live):
    engine = Engine("transformers", {"kv_tokens": 4096})
    live.wish(rollout_wishes.update(live.deployment, {"engine": engine}, None, "ann"))
    assert live.phases == [Phase.LIVE, Phase.STARTING]
    assert [each.engine for each in live.deployment.revisions] == [None, engine]


def test_what_was_asked_is_there_when_the_gateway_and_the_replicas_go_by_it(live):
    start_canary(live, 2, weight=500)
    assert is_settled(live.deployment, {1: READY, 2: STARTING}, is_routed=True), "what comes up is asked for alone"
    live.look(READY, READY)
    seen = {1: READY, 2: READY}
    assert is_settled(live.deployment, seen, is_routed=True)
    assert not is_settled(live.deployment, seen, is_routed=False)
    grows = Seen(Shown.STARTING, "starting: 2 of 4 replicas", num_running=2)
    for number in seen:
        assert not is_settled(live.deployment, seen | {number: grows}, is_routed=True)
    state, words = state_of(live.deployment, seen | {1: grows})
    assert (state, words.split("; ")[1]) == (DeploymentState.READY, "starting: 2 of 4 replicas")
    live.wish(rollout_wishes.roll_back(live.deployment, "ann"))
    assert "m@2 was taken back" in state_of(live.deployment, {1: grows})[1], "that is told besides"
    assert is_settled(live.deployment, {1: FAILED}, is_routed=False), "there is nothing to wait for"
