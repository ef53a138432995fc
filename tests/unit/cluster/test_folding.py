"""Events that say the same again and again are told once, and steps from state to state always."""

from __future__ import annotations

from athanor.v1 import job_pb2, job_service_pb2

from cluster.cli.folding import Repeats, Told, folded, shortened

RUNNING, PAUSED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_PAUSED


def event(reason: str, message: str = "", state: job_pb2.JobState.ValueType = RUNNING) -> job_service_pb2.JobEvent:
    return job_service_pb2.JobEvent(reason=reason, message=message, state=state)


def saved(count: int, first: int = 1) -> list[job_service_pb2.JobEvent]:
    return [event("CHECKPOINT_SAVED", f"step {step}") for step in range(first, first + count)]


def lines(told: list[Told]) -> list[tuple[str, str]]:
    return [(each.event.reason, each.message) for each in told]


def test_of_a_run_of_checkpoints_the_last_is_told() -> None:
    history = [event("RUNNING"), *saved(3), event("DATA_CUT"), event("DATA_CUT"), *saved(1, 4)]
    assert lines(list(folded(history))) == [
        ("RUNNING", ""),
        ("CHECKPOINT_SAVED", "step 3 (the last of 3)"),
        ("DATA_CUT", ""),
        ("DATA_CUT", ""),
        ("CHECKPOINT_SAVED", "step 4"),
    ]


def test_what_moved_the_job_is_kept_however_much_else_there_is() -> None:
    noise = [event("DATA_CUT", str(number)) for number in range(50)]
    told = shortened(list(folded([event("RUNNING"), *noise, event("PAUSED", state=PAUSED)])), 5)
    assert [each.event.reason for each in told] == ["RUNNING", "DATA_CUT", "DATA_CUT", "DATA_CUT", "PAUSED"]
    assert told[1].message == "47", "of the rest the newest"
    moves = [event("X", state=state) for state in (PAUSED, RUNNING) * 10]
    assert len(shortened(list(folded([*moves, *noise])), 5)) == 20


def test_as_they_come_the_first_is_told_and_the_rest_when_something_else_happens() -> None:
    repeats, told = Repeats(), []
    for each in [event("RUNNING"), *saved(4), event("PAUSED", state=PAUSED), *saved(1, 9)]:
        told.append(lines(repeats.heard(each)))
    assert told == [
        [("RUNNING", "")],
        [("CHECKPOINT_SAVED", "step 1")],
        *([], [], []),
        [("CHECKPOINT_SAVED", "step 4 (the last of 3)"), ("PAUSED", "")],
        [("CHECKPOINT_SAVED", "step 9")],
    ]
