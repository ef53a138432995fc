"""What the commands print where, and with which exit code they end, in front of a stand-in control plane."""

from __future__ import annotations

import json

import pytest
import yaml
from athanor.v1 import deployment_service_pb2, job_pb2, model_service_pb2
from command_line import Shell
from fake_server import FakeControlPlane, change


def test_submit_prints_the_uid_alone(shell: Shell, plane: FakeControlPlane) -> None:
    code, out, err = shell.run("job", "submit", "-f", shell.job_file(), "--request-id", "mine")
    assert (code, out) == (0, "bot-abcdefgh\n")
    assert "athanor job watch bot-abcdefgh" in err
    assert plane.created[0].request_id == "mine"


def test_dry_run_asks_the_server_and_stores_nothing(shell: Shell, plane: FakeControlPlane) -> None:
    code, out, _ = shell.run("job", "submit", "-f", shell.job_file(), "--dry-run", "-o", "json")
    assert code == 0
    assert json.loads(out)["spec"]["training"]["max_steps"] == 3
    assert plane.created[0].validate_only


@pytest.mark.parametrize(("state", "expected"), [("SUCCEEDED", 0), ("FAILED", 100), ("CANCELLED", 103)])
def test_wait_ends_with_the_code_of_the_job(shell: Shell, plane: FakeControlPlane, state: str, expected: int) -> None:
    plane.changes = [change(1, "RUNNING", reason="RUNNING", stage="train", step=4), change(2, state, reason="DONE")]
    code, out, err = shell.run("job", "submit", "-f", shell.job_file(), "--wait")
    assert code == expected
    assert out == "bot-abcdefgh\n"
    assert f"bot-abcdefgh {state}" in err


def test_a_timeout_ends_with_124_and_the_job_goes_on(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs["bot-abcdefgh"] = job_pb2.Job(uid="bot-abcdefgh", name="bot")
    plane.changes = [change(1, "RUNNING")]
    code, _, err = shell.run("job", "watch", "bot", "--timeout", "0.3")
    assert code == 124
    assert "it goes on" in err


def test_watch_writes_each_change_as_a_line_of_json(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs["bot-abcdefgh"] = job_pb2.Job(uid="bot-abcdefgh", name="bot")
    plane.changes = [change(1, "RUNNING", reason="RUNNING"), change(2, "SUCCEEDED", reason="DONE")]
    code, out, _ = shell.run("job", "watch", "bot", "-o", "json")
    assert code == 0
    assert [json.loads(line)["event"]["reason"] for line in out.splitlines()] == ["RUNNING", "DONE"]


@pytest.mark.parametrize(("state", "expected"), [("FAILED", 100), ("CANCELLED", 103)])
def test_watch_in_json_ends_with_the_code_of_the_job(
    shell: Shell, plane: FakeControlPlane, state: str, expected: int
) -> None:
    plane.jobs["bot-abcdefgh"] = job_pb2.Job(uid="bot-abcdefgh", name="bot")
    plane.changes = [change(1, state, reason="DONE")]
    assert shell.run("job", "watch", "bot", "-o", "json")[0] == expected


def test_watching_all_jobs_ends_at_the_timeout(shell: Shell, plane: FakeControlPlane) -> None:
    plane.changes = [change(1, "RUNNING", reason="STARTED")]
    code, out, err = shell.run("job", "watch", "--timeout", "0.3")
    assert (code, err) == (124, "")
    assert out.count("STARTED") == 1


def test_a_failed_job_says_why_and_what_next(shell: Shell, plane: FakeControlPlane) -> None:
    failed = change(1, "FAILED")
    failed.job.reason, failed.job.message = "NON_FINITE_LOSS", "the loss is nan at step 3"
    failed.job.report_path = "/storage/report.html"
    plane.jobs["bot-abcdefgh"] = failed.job
    plane.changes = [failed]
    _, out, _ = shell.run("job", "get", "bot")
    fields = {name: value.strip() for name, value in (line.split("  ", 1) for line in out.splitlines())}
    assert fields["Reason"] == "NON_FINITE_LOSS"
    assert fields["Message"] == "the loss is nan at step 3"
    assert fields["Report"] == "/storage/report.html"
    assert "athanor job logs bot-abcdefgh" in fields["Next"]
    _, _, err = shell.run("job", "watch", "bot")
    assert (
        "FAILED; [NON_FINITE_LOSS] the loss is nan at step 3; report /storage/report.html\nnext: look at the rows"
        in err
    )


def test_wrong_fields_are_lines_of_their_own(shell: Shell) -> None:
    code, out, err = shell.run("job", "submit", "-f", shell.job_file("refused"))
    assert (code, out) == (2, "")
    assert err == "error: [INVALID_SPEC] the request is wrong\n  spec.data.train: there is no file /data/none.jsonl\n"


def test_an_unknown_key_is_found_before_sending(shell: Shell, plane: FakeControlPlane) -> None:
    code, _, err = shell.run("job", "submit", "-f", shell.job_file(), "--set", "spec.training.max_step=4")
    assert code == 2
    assert "spec.training.max_step: unknown key; did you mean 'max_steps'?" in err
    assert plane.created == []


def test_list_speaks_every_form(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs = {f"bot-{n}": job_pb2.Job(uid=f"bot-{n}", kind="Distill", state=4) for n in range(2)}
    assert shell.run("job", "list", "-o", "name")[1] == "bot-0\nbot-1\n"
    assert [job["state"] for job in json.loads(shell.run("job", "list", "-o", "json")[1])] == ["JOB_STATE_RUNNING"] * 2
    assert [job["uid"] for job in yaml.safe_load(shell.run("job", "list", "-o", "yaml")[1])] == ["bot-0", "bot-1"]
    heading, *rows = shell.run("job", "list")[1].splitlines()
    assert heading.split()[:3] == ["UID", "KIND", "STATE"]
    assert [row.split()[:3] for row in rows] == [["bot-0", "Distill", "RUNNING"], ["bot-1", "Distill", "RUNNING"]]


def test_list_takes_states_by_their_short_names(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs = {"a": job_pb2.Job(uid="a", state=4), "b": job_pb2.Job(uid="b", state=9)}
    assert shell.run("job", "list", "--state", "succeeded", "-o", "name")[1] == "b\n"
    code, _, err = shell.run("job", "list", "--state", "sleeping")
    assert code == 2
    assert "sleeping is no state; there are queued" in err


def test_a_ray_that_is_gone_is_shown(shell: Shell, plane: FakeControlPlane) -> None:
    words = "Ray's dashboard does not answer"
    condition = job_pb2.Condition(type="Unreachable", status=True, reason="RAY_GONE", message=words)
    plane.jobs = {"a": job_pb2.Job(uid="a", state=4, conditions=[condition])}
    assert "RUNNING (Unreachable)" in shell.run("job", "list")[1]
    assert f"[RAY_GONE] {words} (for " in shell.run("job", "get", "a")[1]


def test_get_ends_with_the_state_when_asked(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs = {"a": job_pb2.Job(uid="a", state=4), "b": job_pb2.Job(uid="b", state=10)}
    assert shell.run("job", "get", "a")[0] == 0
    assert shell.run("job", "get", "a", "--exit-code")[0] == 101
    assert shell.run("job", "get", "b", "--exit-code")[0] == 100
    code, out, err = shell.run("job", "get", "c")
    assert (code, out, err) == (102, "", "error: [JOB_NOT_FOUND] there is no job 'c'\n")


def test_logs_are_printed_as_they_are_and_end_with_the_job(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs = {"a": job_pb2.Job(uid="a", state=10)}
    plane.log = "grüße\n".encode() * 3
    assert shell.run("job", "logs", "a") == (0, "grüße\n" * 3, "")
    assert shell.run("job", "logs", "a", "-f")[0] == 100


def test_cancel_says_what_became_of_the_job(shell: Shell, plane: FakeControlPlane) -> None:
    plane.jobs = {"a": job_pb2.Job(uid="a", state=4)}
    assert shell.run("job", "cancel", "a") == (0, "", "a is CANCELLED\n")


def test_models_are_listed_shown_and_aliased(shell: Shell, plane: FakeControlPlane) -> None:
    version = model_service_pb2.ModelVersion(name="bot", version=3, path="/models/bot", num_parameters=1404320)
    version.metrics.update({"exact_match": 0.934})
    plane.models = {"bot@3": version}
    listed = shell.run("model", "list")[1]
    assert "bot@3" in listed
    assert "1,404,320" in listed
    assert "93.4%" in listed
    assert "/models/bot" in shell.run("model", "get", "bot@3")[1]
    assert shell.run("model", "alias", "bot@3", "champion")[2] == "bot@champion is bot@3 now\n"
    assert shell.run("model", "get", "none")[0] == 102


def test_a_model_is_served_listed_and_taken_down(shell: Shell, plane: FakeControlPlane) -> None:
    code, out, _ = shell.run("serve", "deploy", "bot", "-m", "bot@1", "-o", "json")
    assert code == 0
    assert json.loads(out)["endpoint"] == "http://127.0.0.1:8000/bot/v1"
    assert shell.run("serve", "list", "-o", "name")[1] == "bot\n"
    plane.deployments["bot"].state = deployment_service_pb2.DEPLOYMENT_STATE_DEPLOYING
    assert shell.run("serve", "status", "bot")[0] == 101
    assert shell.run("serve", "delete", "bot")[0] == 0
    assert shell.run("serve", "status", "bot")[0] == 102


def test_nobody_there_is_105(shell: Shell) -> None:
    code, out, err = shell.run("job", "list", "--address", "127.0.0.1:1")
    assert (code, out) == (105, "")
    assert err == "error: [NO_CONTROL_PLANE] no control plane at 127.0.0.1:1; start one with `athanor up`\n"


def test_a_submit_without_an_answer_says_how_to_submit_again(shell: Shell, plane: FakeControlPlane) -> None:
    plane.slow_times = 1000
    code, out, err = shell.run("job", "submit", "-f", shell.job_file(), "--request-id", "mine")
    assert (code, out) == (105, "")
    assert err.startswith("error: [NO_ANSWER] no answer in time from ")
    assert "submit again with --request-id mine" in err


def test_wrong_usage_is_2(shell: Shell) -> None:
    assert shell.run("job", "submit")[0] == 2
    assert shell.run("job", "list", "-o", "xml")[0] == 2
    assert shell.run("nothing")[0] == 2


def test_down_where_nothing_is_up_is_friendly(shell: Shell) -> None:
    assert shell.run("down") == (0, "", "nothing was up\n")


def test_up_wants_both_addresses_of_a_ray(shell: Shell) -> None:
    code, _, err = shell.run("up", "--ray-address", "10.0.0.1:6379")
    assert code == 2
    assert "both --ray-address and --ray-dashboard-url" in err


def test_without_any_cluster_that_is_said(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATHANOR_ADDRESS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(shell.folder / "config"))
    code, out, err = shell.run("job", "list")
    assert (code, out) == (105, "")
    assert err.startswith(f"error: [NO_CONTROL_PLANE] no local cluster is up in {shell.folder / 'home'}")


def test_list_narrows_down_by_project_and_maker(shell: Shell, plane: FakeControlPlane) -> None:
    shell.run("job", "list", "--project", "care", "--creator", "ann", "--filter", "priority > 3 OR name = a")
    assert plane.filters[-1] == '(priority > 3 OR name = a) AND project = "care" AND creator = "ann"'
    shell.run("job", "list", "--mine")
    assert plane.filters[-1] == 'creator = "sue"'
    shell.run("job", "list", "--filter", "priority > 3")
    assert plane.filters[-1] == "priority > 3"
    assert shell.run("job", "list", "--mine", "--creator", "ann")[0] == 2


def test_a_list_says_when_it_is_empty_and_when_there_is_more(shell: Shell, plane: FakeControlPlane) -> None:
    assert shell.run("job", "list", "-o", "name") == (0, "", "no jobs\n")
    plane.jobs = {f"bot-{n}": job_pb2.Job(uid=f"bot-{n}") for n in range(3)}
    assert shell.run("job", "list", "-o", "name", "--limit", "2") == (
        0,
        "bot-0\nbot-1\n",
        "there are more than these 2: --limit 20\n",
    )
    assert shell.run("job", "list", "-o", "name", "--limit", "3")[2] == ""


def test_a_job_is_printed_as_the_file_that_makes_it_again(shell: Shell, plane: FakeControlPlane) -> None:
    shell.run("job", "submit", "-f", shell.job_file())
    code, out, _ = shell.run("job", "get", "bot", "-o", "manifest")
    assert code == 0
    again = shell.folder / "again.yaml"
    again.write_text(out)
    assert shell.run("job", "submit", "-f", str(again))[0] == 0
    first, second = plane.created
    assert first.job == second.job
    assert shell.run("job", "get", "bot", "-o", "xml")[0] == 2
