"""What people do with jobs: change, read, describe, wait for them; and what they are told to do next."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest
import typer
from athanor.v1 import job_pb2, job_service_pb2
from command_line import Shell
from fake_server import FakeControlPlane, change
from google.protobuf import json_format
from typer.testing import CliRunner

from cluster.cli import advice
from cluster.cli.completion import complete_job, complete_state
from cluster.cli.lists import Columns, Line, show_list
from cluster.cli.main import app
from cluster.cli.output import Format

UID = "bot-abcdefgh"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def job(plane: FakeControlPlane) -> job_pb2.Job:
    plane.jobs[UID] = job_pb2.Job(uid=UID, name="bot", kind="Distill", state=job_pb2.JOB_STATE_RUNNING, etag="e1")
    return plane.jobs[UID]


def metrics_line(step: int, loss: float, *, rewound: bool = False) -> job_service_pb2.StreamJobMetricsResponse:
    line = job_service_pb2.StreamJobMetricsResponse(step=step, rewound=rewound)
    json_format.ParseDict({"step": step, "loss": loss, "terms": {"divergence": loss / 2}}, line.figures)
    return line


@pytest.mark.usefixtures("job")
def test_pause_resume_and_cancel_say_the_state(shell: Shell, plane: FakeControlPlane) -> None:
    assert shell.run("job", "pause", "bot", "-m", "lunch") == (0, "", f"{UID} is PAUSING\n")
    assert plane.asked[0].message == "lunch"
    assert shell.run("job", "resume", "bot") == (0, "", f"{UID} is QUEUED\n")
    assert shell.run("job", "cancel", "bot", "--grace", "5") == (0, "", f"{UID} is CANCELLED\n")


@pytest.mark.usefixtures("job")
def test_pause_waits_until_it_is_paused(shell: Shell, plane: FakeControlPlane) -> None:
    plane.changes = [change(1, "PAUSING"), change(2, "PAUSED"), change(3, "QUEUED")]
    assert shell.run("job", "pause", "bot", "--wait") == (0, "", f"{UID} is PAUSED\n")


@pytest.mark.usefixtures("job")
def test_retry_prints_the_new_uid_alone(shell: Shell, plane: FakeControlPlane) -> None:
    code, out, err = shell.run("job", "retry", "bot", "--from-checkpoint", "--request-id", "mine")
    assert (code, out) == (0, "bot-again\n")
    assert "athanor job watch bot-again" in err
    assert (plane.asked[0].from_checkpoint, plane.asked[0].request_id) == (True, "mine")


def test_update_changes_what_it_names_and_merges_labels(
    shell: Shell, plane: FakeControlPlane, job: job_pb2.Job
) -> None:
    job.labels.update({"team": "care", "tier": "gold"})
    arguments = ("--priority", "800", "--label", "tier=", "--label", "run=3", "--max-run-duration", "90m")
    assert shell.run("job", "update", "bot", *arguments)[0] == 0
    (request,) = plane.asked
    assert sorted(request.update_mask.paths) == ["labels", "max_run_duration", "priority"]
    assert dict(request.job.labels) == {"team": "care", "run": "3"}
    assert (request.job.priority, request.job.max_run_duration.seconds, request.etag) == (800, 5400, "e1")


@pytest.mark.usefixtures("job")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say what to change"),
        (("--label", "team"), "no KEY=VALUE"),
        (("--max-run-duration", "soon"), "a unit of s, m, h or d"),
        (("--priority", "1001"), "less than or equal to 1000"),
    ],
)
def test_an_update_that_makes_no_sense_asks_nothing(
    shell: Shell, plane: FakeControlPlane, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = shell.run("job", "update", "bot", *arguments)
    assert code == 2
    assert words in err
    assert plane.asked == []


@pytest.mark.usefixtures("job")
def test_delete_asks_first_and_nobody_is_there_to_answer(shell: Shell, plane: FakeControlPlane) -> None:
    code, _, err = shell.run("job", "delete", "bot")
    assert (code, "nothing was deleted" in err) == (1, True)
    assert shell.run("job", "delete", "bot", "--yes") == (0, "", f"{UID} is deleted\n")
    assert plane.jobs == {}


def test_wait_ends_with_the_code_of_the_first_that_did_not_succeed(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs[UID] = job_pb2.Job(uid=UID, name="bot")
    plane.changes = [change(1, "RUNNING"), change(2, "FAILED")]
    code, out, err = shell.run("job", "wait", "bot", "bot")
    assert (code, out) == (100, "")
    assert err.count(f"{UID} FAILED") == 2


@pytest.mark.usefixtures("job")
def test_metrics_hold_each_step_once(shell: Shell, plane: FakeControlPlane) -> None:
    plane.metrics = [metrics_line(1, 4.0), metrics_line(2, 3.0), metrics_line(2, 2.5, rewound=True)]
    _, out, _ = shell.run("job", "metrics", "bot", "-o", "json")
    assert [(line["step"], line["loss"]) for line in json.loads(out)] == [(1, 4.0), (2, 2.5)]
    _, out, _ = shell.run("job", "metrics", "bot")
    assert [line.split()[:2] for line in out.splitlines()] == [["STEP", "LOSS"], ["1", "4"], ["2", "2.5"]]


def test_followed_metrics_are_lines_and_end_with_the_jobs_code(
    shell: Shell, plane: FakeControlPlane, job: job_pb2.Job
) -> None:
    job.state = job_pb2.JOB_STATE_FAILED
    plane.metrics = [metrics_line(1, 4.0), metrics_line(1, 3.0, rewound=True)]
    code, out, _ = shell.run("job", "metrics", "bot", "-f", "-o", "json")
    assert code == 100
    assert [json.loads(line)["rewound"] for line in out.splitlines()] == [False, True]


@pytest.mark.usefixtures("job")
def test_metrics_are_drawn(shell: Shell, plane: FakeControlPlane) -> None:
    plane.metrics = [metrics_line(step, 8.0 / step) for step in range(1, 9)]
    _, out, err = shell.run("job", "metrics", "bot", "--plot", "--figure", "terms.divergence", "--figure", "none")
    lines = out.splitlines()
    assert "terms.divergence" in lines[0]
    assert lines[1].startswith("   4 ┤")
    assert any(0x2800 < ord(character) <= 0x28FF for line in lines for character in line)
    assert err == "there is no figure 'none'; there are loss, terms.divergence\n"
    plane.metrics = []
    assert shell.run("job", "metrics", "bot", "--plot", "--figure", "loss")[2] == "there are no figures yet\n"


@pytest.mark.usefixtures("job")
def test_curves_are_written_for_tensorboard(shell: Shell, plane: FakeControlPlane, tmp_path: Path) -> None:
    plane.metrics = [metrics_line(1, 4.0), metrics_line(2, 3.0), metrics_line(2, 2.5, rewound=True)]
    code, _, err = shell.run("job", "tensorboard", "bot", str(tmp_path / "tb"))
    assert (code, err.startswith("2 steps")) == (0, True)
    assert len(list((tmp_path / "tb" / UID / "student").glob("events.out.tfevents*"))) == 1


@pytest.mark.usefixtures("job")
def test_a_report_is_data_on_stdout_or_a_file(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("job", "report", "bot")[1] == "{}"
    shell.run("job", "report", "bot", "--html", "--to", str(tmp_path / "report.html"))
    assert (tmp_path / "report.html").read_text() == "<html></html>"


def test_describe_tells_the_story_and_what_to_do(shell: Shell, plane: FakeControlPlane, job: job_pb2.Job) -> None:
    job.state = job_pb2.JOB_STATE_QUEUED
    job.queue.CopyFrom(job_pb2.QueueStanding(position=3, reason="QUOTA", message="care holds all it may"))
    attempt = job.attempts.add(number=1, ray_job_id=f"{UID}-1", reason="WORKER_LOST", message="killed by SIGKILL")
    attempt.start_time.seconds, attempt.end_time.seconds = 1000, 1190
    plane.events = [job_service_pb2.JobEvent(reason="CREATED", message="stored", state=job_pb2.JOB_STATE_QUEUED)]
    code, out, err = shell.run("job", "describe", "bot")
    told = " ".join(out.split())
    assert (code, err) == (0, "")
    assert f"{UID} QUEUED" in told
    assert "Queue #3 [QUOTA] care holds all it may" in told
    assert f"1 {UID}-1 3:10 [WORKER_LOST] killed by SIGKILL" in told
    assert f"http://127.0.0.1:8265/#/jobs/{UID}-1" in told
    assert "QUEUED CREATED stored" in told
    assert "Next its project is at its quota" in told
    assert "\x1b" not in out
    document = json.loads(shell.run("job", "describe", "bot", "-o", "json")[1])
    assert (document["job"]["uid"], document["events"][0]["reason"]) == (UID, "CREATED")
    assert document["next"] == [advice.OF_WAITING["QUOTA"]]


def test_describe_names_what_a_job_waits_for_and_counts_no_pause(
    shell: Shell, plane: FakeControlPlane, job: job_pb2.Job
) -> None:
    job.state = job_pb2.JOB_STATE_QUEUED
    job.queue.CopyFrom(job_pb2.QueueStanding(reason="DEPENDENCY", message="it waits for 1 of the jobs"))
    spec = {
        "schedule": {"depends_on": ["teacher-abcdefgh"]},
        "teachers": [{"model": "teacher@best"}],
        "student": {"model": "base@1"},
    }
    json_format.ParseDict(spec, job.spec)
    job.resolved_models["base@1"] = "base@1"
    job.start_time.seconds = 1010
    for number, (start, end) in enumerate([(100, 800), (1000, 1030), (9000, 9005)], start=1):  # the first one never ran
        attempt = job.attempts.add(number=number, ray_job_id=f"{UID}-{number}", reason="PAUSED")
        attempt.start_time.seconds, attempt.end_time.seconds = start, end
    told = " ".join(shell.run("job", "describe", "bot")[1].split())
    assert "Depends on teacher-abcdefgh" in told
    assert "Ran 0:25 so far, since" in told
    assert "Uses base@1 = base@1, teacher@best = what a job that it depends on publishes" in told
    assert told.endswith("have succeeded; see them with: athanor job describe teacher-abcdefgh")


def test_a_directory_is_no_model_that_is_waited_for(shell: Shell, job: job_pb2.Job) -> None:
    job.state = job_pb2.JOB_STATE_QUEUED
    json_format.ParseDict({"student": {"model": "/data/models@v2/base"}}, job.spec)
    for depends_on in ([], ["teacher-abcdefgh"]):
        json_format.ParseDict({"schedule": {"depends_on": depends_on}}, job.spec)
        assert "what a job that it depends on" not in shell.run("job", "describe", "bot")[1]


def test_every_reason_to_wait_has_a_word_of_advice() -> None:
    contract = (ROOT / "protos/athanor/v1/job.proto").read_text()
    standing = contract[contract.index("message QueueStanding") :].split("string reason", 1)[0]
    words = re.findall(r"[A-Z]+(?:_[A-Z]+)+|RESOURCES|QUOTA|HELD|DEPENDENCY|RELEASING", standing)
    assert set(words) - {"UPPER_SNAKE"} == set(advice.OF_WAITING)


def test_advice_names_the_job_and_commands_that_there_are() -> None:
    sentences = [*advice.OF_FAILURE.values(), *advice.OF_WAITING.values(), *advice.OF_STATE.values()]
    commands = typer.main.get_command(app).commands["job"].commands
    for sentence in sentences:
        for part in sentence.split("athanor job ")[1:]:
            assert part.split()[0] in commands


def test_a_job_whose_dependency_failed_is_submitted_again_with_another(
    shell: Shell, plane: FakeControlPlane, job: job_pb2.Job
) -> None:
    job.state, job.reason = job_pb2.JOB_STATE_FAILED, "DEPENDENCY_FAILED"
    advised = advice.next_steps(job)[0]
    assert "job retry" not in advised
    command = advised[advised.index("athanor") :].replace("FILE", shell.job_file()).replace("UID", "teacher-abcdefgh")
    assert shell.run(*shlex.split(command)[1:])[0] == 0
    assert advice.dependencies(plane.created[-1].job) == ["teacher-abcdefgh"]


def test_a_retry_from_a_checkpoint_is_advised_where_there_is_one(job: job_pb2.Job) -> None:
    job.state, job.reason = job_pb2.JOB_STATE_FAILED, "STORAGE_FULL"
    json_format.ParseDict({"checkpoint": {"every_steps": 200}}, job.spec)
    far = [("", 0), ("prepare", 5), ("train", 199), ("label", 0)], [("train", 200), ("label", 1), ("evaluate", 0)]
    for has_one, places in enumerate(far):
        for job.progress.stage, job.progress.step in places:
            (advised, _) = advice.next_steps(job)
            assert advised.endswith(f"athanor job retry {UID}{' --from-checkpoint' * has_one}")


def test_validate_asks_or_does_not(shell: Shell, plane: FakeControlPlane) -> None:
    assert shell.run("job", "validate", "-f", shell.job_file())[0] == 0
    assert [request.validate_only for request in plane.created] == [True]
    assert shell.run("job", "validate", "-f", shell.job_file(), "--offline")[0] == 0
    assert len(plane.created) == 1


def test_wide_lists_show_queue_and_labels(shell: Shell, job: job_pb2.Job) -> None:
    job.labels["team"] = "care"
    _, out, _ = shell.run("job", "list", "-o", "wide")
    assert "CREATOR" in out.splitlines()[0]
    assert "team=care" in out


class Passes:
    """Stands for time that goes by: the n-th wait is Ctrl-C."""

    def __init__(self, ends_at: int) -> None:
        self.left = ends_at

    def __call__(self, seconds: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (Format.NAME, ["a", "b", "b"]),
        (Format.TABLE, ["NAME  V", "a     1", "b     1", "b     2"]),
        (Format.JSON, ['{"v": 1}', '{"v": 1}', '{"v": 2}']),
    ],
)
def test_a_watched_list_prints_what_becomes_another(
    capsys: pytest.CaptureFixture[str], form: Format, expected: list[str]
) -> None:
    rounds = iter([{"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 2}])

    def load() -> list[Line]:
        return [Line(name, {"v": value}, (name, str(value))) for name, value in next(rounds).items()]

    with pytest.raises(typer.Exit) as ended:
        show_list(form, Columns(("NAME", "V")), load, watch=True, sleep=Passes(3))
    assert ended.value.exit_code == 130
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == expected


@pytest.mark.usefixtures("shell", "job")
def test_the_shell_completes_jobs_and_states(monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_job("bo") == [(UID, "Distill RUNNING")]
    assert complete_job("x") == []
    assert complete_state("pau") == ["pausing", "paused"]
    monkeypatch.setenv("ATHANOR_ADDRESS", "127.0.0.1:1")
    assert complete_job("bo") == []


@pytest.mark.usefixtures("job")
def test_completion_answers_the_shell(shell: Shell) -> None:
    environment = {"_ATHANOR_COMPLETE": "complete_bash", "COMP_WORDS": "athanor job get bo", "COMP_CWORD": "3"}
    result = CliRunner().invoke(app, prog_name="athanor", env={**os.environ, **environment})
    assert result.output.split() == [UID]
