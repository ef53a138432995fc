from __future__ import annotations

import pytest
from athanor.v1 import worker_service_pb2
from athanor.v1.worker_service_pb2 import AttemptRef, HeartbeatRequest
from worker_service import ControlPlane, serving

from cluster.driver.line import Line
from cluster.rpc import RequestFailed

DEAD = "127.0.0.1:9"


def beat(token: str = "secret") -> HeartbeatRequest:
    return HeartbeatRequest(attempt=AttemptRef(job_uid="bot-abcdefgh", attempt=1, lease_token=token))


def say(line: Line, request: HeartbeatRequest) -> worker_service_pb2.HeartbeatResponse:
    return line.call(lambda stub: stub.Heartbeat(request, timeout=5.0))


def test_one_that_does_not_answer_is_left_for_the_next() -> None:
    with serving(ControlPlane()) as port:
        line = Line([DEAD, f"127.0.0.1:{port}"])
        assert say(line, beat()).directive == worker_service_pb2.DIRECTIVE_CONTINUE
        assert line.address == f"127.0.0.1:{port}"
        line.close()


def test_when_nobody_answers_each_was_asked_once_and_the_next_call_begins_anew() -> None:
    asked: list[str] = []
    line = Line([DEAD, "127.0.0.1:10"])

    def ask(stub: object) -> worker_service_pb2.HeartbeatResponse:
        asked.append(line.address)
        return stub.Heartbeat(beat(), timeout=5.0)  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(RequestFailed, match="no control plane at"):
        line.call(ask)
    assert asked == [DEAD, "127.0.0.1:10"]
    line.close()


def test_an_answer_that_says_no_is_an_answer() -> None:
    first, second = ControlPlane(), ControlPlane()
    with serving(first) as one, serving(second) as other:
        line = Line([f"127.0.0.1:{one}", f"127.0.0.1:{other}"])
        with pytest.raises(RequestFailed) as caught:
            say(line, beat("stale"))
        assert caught.value.reason == "LEASE_LOST"
        assert line.address == f"127.0.0.1:{one}"
        assert second.told.empty()
        line.close()


def test_who_lives_is_learned_and_whoever_answers_stays_the_first() -> None:
    with serving(ControlPlane()) as port:
        here = f"127.0.0.1:{port}"
        line = Line([here])
        line.learn(["127.0.0.1:11", here])
        assert line.address == here
        line.learn([])
        say(line, beat())
    with serving(ControlPlane()) as other:
        line.learn([f"127.0.0.1:{other}", here])
        assert say(line, beat()).directive == worker_service_pb2.DIRECTIVE_CONTINUE
        assert line.address == f"127.0.0.1:{other}"
    line.close()
