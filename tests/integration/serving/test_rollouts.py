"""Versions that come and go on a real Ray Serve, while people keep asking: none of them may notice."""

from __future__ import annotations

import httpx
import pytest
from athanor.v1 import deployment_service_pb2 as pb
from installation import QUESTION, Installation, Models, crowd, gate, wait

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAME = "desk"
SESSIONS = [f"talk-{number}" for number in range(24)]


@pytest.fixture(scope="module")
def desk(installation, models):
    """A deployment of the good version, with two replicas."""
    installation.deploy(NAME, models.good, num_replicas=2)
    return NAME


def test_a_rolling_update_and_a_killed_replica_are_seen_by_nobody(installation: Installation, models, desk) -> None:
    with crowd(installation, desk) as people:
        installation.client.update_deployment(pb.Deployment(name=desk, model=models.better), ["model"])
        installation.until_phase(desk, 2, "LIVE")
        installation.until_phase(desk, 1, "GONE")
        wait(lambda: people.failures or people.answers[-1][0] == models.better)
        installation.kill_replica(f"{desk}--r2")
    versions = [version for version, _ in people.answers]
    assert set(versions) == {models.good, models.better}
    assert len({text for version, text in people.answers if version == models.better}) == 1


def test_a_corrupt_version_is_taken_back(installation: Installation, models, desk, chat_model_dir) -> None:
    broken = installation.publish("student", chat_model_dir)
    stored = installation.client.get_model(broken)
    weights = next(path for path in _files(stored.path) if path.suffix == ".safetensors")
    weights.write_bytes(weights.read_bytes()[:-8] + b"corrupt!")
    with crowd(installation, desk, 2) as people:
        installation.client.update_deployment(pb.Deployment(name=desk, model=broken), ["model"])
        gone = installation.until_phase(desk, 3, "GONE")
    assert "sha256" in gone.message
    assert {version for version, _ in people.answers} == {models.better}
    deployment = installation.client.get_deployment(desk)
    assert (deployment.state, deployment.model) == (pb.DEPLOYMENT_STATE_READY, models.better)
    assert installation.reasons(desk)[-1] == "REVISION_FAILED"


def test_one_that_does_not_fit_the_cluster_waits_and_is_taken_back_by_hand(
    installation: Installation, models: Models, desk: str
) -> None:
    with crowd(installation, desk, 2) as people:
        changed = installation.client.update_deployment(
            pb.Deployment(name=desk, cpus_per_replica=1000), ["cpus_per_replica"]
        )
        number = changed.revisions[-1].number
        wait(lambda: "comes up" in installation.client.get_deployment(desk).message)
        assert installation.revision(desk, number).phase == pb.REVISION_PHASE_STARTING
        installation.client.rollback_deployment(desk)
        installation.until_phase(desk, number, "GONE")
    assert {version for version, _ in people.answers} == {models.better}
    assert installation.client.get_deployment(desk).state == pb.DEPLOYMENT_STATE_READY


def test_a_canary_that_says_garbage_is_rolled_back_by_itself(installation: Installation, models, desk) -> None:
    with crowd(installation, desk) as people:
        installation.client.start_canary(desk, models.garbage, gate=gate(models))
        wait(lambda: "CANARY_ROLLED_BACK" in installation.reasons(desk), words=lambda: _told(installation, desk))
    assert models.garbage not in {version for version, _ in people.answers}
    decision = next(iter(installation.client.list_deployment_events(desk)))
    figures = {each["name"]: each for each in decision.figures["figures"]}
    assert figures["divergence"]["mean"] > figures["divergence"]["limit"]
    assert "diverges" in decision.message or "agrees" in decision.message


def test_a_canary_that_is_good_is_promoted_by_itself(installation: Installation, models, desk) -> None:
    with crowd(installation, desk) as people:
        installation.client.start_canary(desk, models.good, weight=2000, gate=gate(models))
        wait(lambda: "CANARY_PROMOTED" in installation.reasons(desk), words=lambda: _told(installation, desk))
        wait(lambda: people.failures or people.answers[-1][0] == models.good)
    deployment = installation.client.get_deployment(desk)
    assert (deployment.resolved_model, deployment.model) == (models.good, models.good)


def answered_by(installation: Installation, desk: str) -> dict[str, str]:
    """Which version answers each session."""
    found = {}
    with installation.openai(timeout=120) as client:
        asking = client.chat.completions.with_raw_response
        for session in SESSIONS:
            headers = {"x-athanor-session": session}
            asked = asking.create(model=desk, messages=QUESTION, max_tokens=1, extra_headers=headers)
            found[session] = asked.headers["x-athanor-model"]
    return found


def share_of(version: str, answers: dict[str, str]) -> set[str]:
    return {session for session, answer in answers.items() if answer == version}


def test_sessions_stay_where_they_are_and_a_growing_share_only_gains(
    installation: Installation, models: Models, desk: str
) -> None:
    """By hand from a fifth to three fifths to all, and back to the version before."""
    client = installation.client
    client.update_deployment(pb.Deployment(name=desk, num_replicas=1), ["num_replicas"])
    with crowd(installation, desk, 2) as people:
        number = client.start_canary(desk, models.better, weight=2000).revisions[-1].number
        installation.until_phase(desk, number, "CANARY")
        wait(lambda: share_of(models.better, answered_by(installation, desk)))
        fifth = answered_by(installation, desk)
        assert answered_by(installation, desk) == fifth
        client.set_traffic(desk, 6000)
        wait(lambda: answered_by(installation, desk) != fifth)
        more = answered_by(installation, desk)
        assert answered_by(installation, desk) == more
        assert set() < share_of(models.better, fifth) < share_of(models.better, more) < set(SESSIONS)
        client.promote_deployment(desk)
        wait(lambda: share_of(models.better, answered_by(installation, desk)) == set(SESSIONS))
        client.rollback_deployment(desk)
        wait(lambda: share_of(models.good, answered_by(installation, desk)) == set(SESSIONS))
    assert {version for version, _ in people.answers} == {models.good, models.better}
    decisions = ["CANARY_STARTED", "TRAFFIC_SET", "CANARY_PROMOTED", "UPDATE_ASKED", "REVISION_LIVE"]
    assert installation.reasons(desk)[-5:] == decisions


def test_an_alias_that_moves_rolls_its_deployment(installation: Installation, models: Models, desk: str) -> None:
    name, _, good = models.good.partition("@")
    installation.client.set_alias(name, "champion", int(good))
    wish = pb.Deployment(name=desk, model=f"{name}@champion", follow_alias=True)
    followed = installation.client.update_deployment(wish, ["model", "follow_alias"])
    before = max(each.number for each in followed.revisions)
    with crowd(installation, desk, 2) as people:
        installation.client.set_alias(name, "champion", int(models.better.partition("@")[2]))
        wait(lambda: people.failures or people.answers[-1][0] == models.better, words=lambda: _told(installation, desk))
        installation.until_phase(desk, before, "GONE")
    deployment = installation.client.get_deployment(desk)
    assert (deployment.model, deployment.resolved_model) == (f"{name}@champion", models.better)
    assert installation.reasons(desk)[-2:] == ["UPDATE_ASKED", "REVISION_LIVE"]


def test_several_deployments_are_behind_one_address(installation: Installation, models, desk) -> None:
    installation.deploy("other", models.better, autoscaling=pb.Autoscaling(min_replicas=1, max_replicas=2))
    with httpx.Client(base_url=installation.url, headers=installation.authorization, trust_env=False) as http:
        listed = http.get("/v1/models").json()["data"]
    assert {each["id"] for each in listed} == {"desk", "other"}
    for name in ("desk", "other"):
        answer = installation.openai().completions.create(model=name, prompt="Where is", max_tokens=4)
        assert answer.choices[0].text
    installation.take_down("other")


def _files(directory: str):
    from pathlib import Path

    return sorted(Path(directory).iterdir())


def _told(installation: Installation, name: str) -> str:
    return f"{installation.client.get_deployment(name)}\n{[*installation.client.list_deployment_events(name)]}"
