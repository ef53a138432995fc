"""The log of figures holds every step once, whatever died in between."""

import json

from trainer.step_log import StepLog


def steps(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_a_resumed_run_drops_what_lies_past_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = StepLog(path, step=0)
    for step in range(1, 6):
        log.write({"step": step})
    with path.open("a") as file:
        file.write('{"step": 6, "los')  # killed while writing
    StepLog(path, step=3).write({"step": 4})
    assert steps(path) == [1, 2, 3, 4]


def test_a_fresh_run_begins_empty(tmp_path):
    path = tmp_path / "metrics.jsonl"
    StepLog(path, step=0).write({"step": 1})
    StepLog(path, step=0)
    assert steps(path) == []
