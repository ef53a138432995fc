"""Ray Serve left to itself: replicas that go because nobody asks, that come by load; gateway and judge are killed."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import openai
import pytest
from athanor.v1 import deployment_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from installation import QUESTION, Installation, Models, crowd, gate, wait

from cluster.serve_plan import GATEWAY

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAME, APPLICATION = "sleeper", "sleeper--r1"


@pytest.fixture(scope="module")
def sleeper(installation: Installation, models: Models) -> Iterator[str]:
    """None to two replicas, and nobody waits long before one more comes or one goes."""
    scaling = pb.Autoscaling(
        min_replicas=0,
        max_replicas=2,
        target_ongoing_requests=1,
        scale_up_delay=Duration(seconds=1),
        scale_down_delay=Duration(seconds=1),
    )
    installation.deploy(NAME, models.good, autoscaling=scaling)
    yield NAME
    installation.take_down(NAME)


def test_without_requests_there_is_no_replica_and_the_next_request_waits_for_one(
    installation: Installation, sleeper: str
) -> None:
    for _ in range(2):
        wait(lambda: not installation.replica_pids(APPLICATION))
        assert installation.client.get_deployment(sleeper).state == pb.DEPLOYMENT_STATE_READY
        assert "athanor_gateway_" in httpx.get(f"{installation.url}/metrics", trust_env=False, timeout=30).text
        assert not installation.replica_pids(APPLICATION), "whoever looks wakes nobody"
        answer = installation.openai(timeout=120).chat.completions.create(
            model=sleeper, messages=QUESTION, max_tokens=4, temperature=0
        )
        assert answer.choices[0].message.content
        assert len(installation.replica_pids(APPLICATION)) == 1


def test_load_brings_a_second_replica_which_goes_with_the_load(installation: Installation, sleeper: str) -> None:
    with crowd(installation, sleeper, 6):
        wait(lambda: len(installation.replica_pids(APPLICATION)) == 2)
    wait(lambda: not installation.replica_pids(APPLICATION))


def test_a_gateway_that_is_killed_is_replaced_and_goes_by_the_same_table(
    installation: Installation, sleeper: str
) -> None:
    killed = installation.kill_replica(GATEWAY)
    wait(lambda: installation.replica_pids(GATEWAY) not in ([], [killed]))
    with installation.openai(timeout=120) as client:
        wait(lambda: answers(client, sleeper))


def answers(client: openai.OpenAI, model: str) -> bool:
    try:
        return bool(client.completions.create(model=model, prompt="Where", max_tokens=4).choices)
    except openai.APIError:
        return False


def test_a_judge_that_is_killed_is_replaced_and_its_canary_decided(installation: Installation, models: Models) -> None:
    installation.deploy("court", models.good)
    judge = "court--judge2"
    with crowd(installation, "court"):
        installation.client.start_canary("court", models.better, gate=gate(models))
        wait(lambda: compared(installation) >= 3)
        killed, before = installation.kill_replica(judge), compared(installation)
        wait(lambda: installation.replica_pids(judge) not in ([], [killed]))
        wait(lambda: "CANARY_PROMOTED" in installation.reasons("court"), words=lambda: installation.reasons("court"))
    decision = next(each for each in installation.client.list_deployment_events("court") if "PROMOTED" in each.reason)
    seen = {each["name"]: each["observations"] for each in decision.figures["figures"]}
    assert seen["divergence"] > before
    installation.take_down("court")


def compared(installation: Installation) -> int:
    """Requests that the gate of the canary has seen."""
    figures = installation.revision("court", 2).figures
    return max((each.observations for each in figures), default=0)
