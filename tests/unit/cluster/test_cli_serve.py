"""Commands about deployments: what they ask, what they say, and which options they do not take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from athanor.v1 import deployment_service_pb2 as pb
from command_line import Shell
from fake_server import FakeControlPlane
from google.protobuf.duration_pb2 import Duration

from cluster.cli.percent import percent, share

LIVE, CANARY = pb.REVISION_PHASE_LIVE, pb.REVISION_PHASE_CANARY
STARTING, GONE = pb.REVISION_PHASE_STARTING, pb.REVISION_PHASE_GONE


@pytest.fixture
def bot(shell: Shell, plane: FakeControlPlane) -> pb.Deployment:
    """A deployment with a version that answers; what is wished of it next makes a canary."""
    assert shell.run("serve", "deploy", "bot", "-m", "bot@1")[0] == 0
    found = plane.deployments["bot"]
    found.revisions.add(number=1, model="bot@1", phase=LIVE)
    plane.next_revision = pb.Revision(number=2, model="bot@2", phase=CANARY, weight=500)
    return found


@pytest.mark.parametrize(
    ("text", "found"), [("5%", 0.05), ("12.5 %", 0.125), ("25", 0.25), ("0", 0.0), ("100%", 1.0), ("0.5%", 0.005)]
)
def test_shares_are_percent(text: str, found: float) -> None:
    assert share(text) == pytest.approx(found)
    assert share(percent(found)) == pytest.approx(found)


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("deploy bot -m bot@1 --gate", "--follow"),
        ("deploy bot -m bot@champion --follow --teacher big@1", "--gate"),
        ("deploy bot -m bot@champion --follow --mirror 50%", "--gate"),
        ("deploy bot -m bot@1 --target-ongoing 4", "--autoscale"),
        ("deploy bot -m bot@1 --scale-delay 30s:5m", "--autoscale"),
        ("deploy bot -m bot@1 --autoscale 0:2 --scale-delay 30s", "30s:10m"),
        ("deploy bot -m bot@1 --autoscale 0:2 --scale-delay soon:5m", "30s:10m"),
        ("deploy bot -m bot@1 --engine-limit kv_tokens", "kv_tokens=32768"),
        ("canary bot -m bot@2 --task-data x.jsonl", "--gate"),
        ("canary bot -m bot@2 --steps 5%", "--gate"),
        ("canary bot -m bot@2 --error-budget 10%", "--gate"),
        ("canary bot -m bot@2 --mirror 0.5", "0.5% or 50%"),
        ("canary bot -m bot@2 --weight 101%", "from 0% to 100%"),
        ("traffic bot many", "from 0% to 100%"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(shell: Shell, words: str, missing: str) -> None:
    code, _, err = shell.run("serve", *words.split())
    assert code == 2
    assert missing in err


def test_an_update_is_judged_by_the_revision_that_it_made(shell: Shell, plane: FakeControlPlane, bot) -> None:
    bot.revisions.add(number=2, model="bot@2", phase=GONE, message="rolled back")
    plane.next_revision = None
    assert shell.run("serve", "update", "bot", "--replicas", "3")[0] == 0
    plane.next_revision = pb.Revision(number=3, model="bot@1", phase=GONE, message="no room")
    code, _, err = shell.run("serve", "update", "bot", "--cpus", "2")
    assert (code, err) == (1, "revision 3 was taken back: no room\n")
    plane.next_revision = pb.Revision(number=4, model="bot@1", phase=LIVE)
    assert shell.run("serve", "update", "bot", "--cpus", "4")[0] == 0


def test_a_canary_says_what_comes_next_and_is_shown_in_any_form(shell: Shell, plane: FakeControlPlane, bot) -> None:
    code, out, err = shell.run(
        "serve", "canary", "bot", "-m", "bot@2", "--weight", "5%", "--mirror", "20%", "-o", "json"
    )
    assert (code, json.loads(out)["name"]) == (0, "bot")
    assert "bot@2 comes up as revision 2 of bot, a canary with 5%" in err
    assert "next: `athanor serve traffic bot 25%`" in err
    (asked,) = plane.asked
    assert (asked.weight, asked.mirror_share, asked.HasField("gate")) == (500, 0.2, False)


def test_a_canary_that_does_not_come_up_is_exit_code_1(shell: Shell, plane: FakeControlPlane, bot) -> None:
    plane.next_revision = pb.Revision(number=2, model="bot@2", phase=GONE, message="no weights")
    code, _, err = shell.run("serve", "canary", "bot", "-m", "bot@2")
    assert (code, "revision 2 was taken back: no weights" in err) == (1, True)
    plane.next_revision.number, plane.next_revision.phase = 3, STARTING
    assert shell.run("serve", "canary", "bot", "-m", "bot@2", "--detach")[0] == 0
    assert shell.run("serve", "canary", "bot", "-m", "bot@2", "--timeout", "0")[0] == 124


def test_a_gate_from_options(shell: Shell, plane: FakeControlPlane, bot, tmp_path: Path) -> None:
    words = f"--gate --teacher big@1 --mirror 50% --error-budget 10% --steps 5%,25% --task-data {tmp_path}/a.jsonl"
    code, _, err = shell.run("serve", "canary", "bot", "-m", "bot@2", *words.split())
    assert (code, "its gate decides" in err) == (0, True)
    gate = plane.asked[-1].gate
    assert (gate.teacher, gate.mirror_share, gate.error_budget, [*gate.steps]) == ("big@1", 0.5, 0.1, [500, 2500])
    assert gate.task_data == f"{tmp_path}/a.jsonl"
    assert not gate.HasField("max_error_rate"), "what is not given is the server's"


GATE_FILE = """
teacher: big@1
mirror_share: 50%
max_agreement_loss: 0%
max_error_rate: 1.5%
max_divergence_increase: 0.2
max_latency_ratio: 2
min_observations: 0
max_duration: 12h
task_data: data/test.csv
max_task_loss: 2%
steps: [5, 25, 50%]
step_requests: 20
"""


def test_a_gate_from_a_file(shell: Shell, plane: FakeControlPlane, bot, tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(GATE_FILE)
    options = ("--gate-file", f"{tmp_path}/gate.yaml", "--mirror", "100%")
    assert shell.run("serve", "canary", "bot", "-m", "bot@2", *options)[0] == 0
    gate = plane.asked[-1].gate
    assert (gate.mirror_share, gate.max_agreement_loss, gate.max_error_rate) == (1.0, 0.0, 0.015)
    assert gate.HasField("max_agreement_loss")
    assert gate.HasField("min_observations")
    assert (gate.max_divergence_increase, gate.max_latency_ratio) == (0.2, 2.0)
    assert (gate.max_duration.seconds, gate.task_data) == (43_200, f"{tmp_path}/data/test.csv")
    assert ([*gate.steps], gate.step_requests, gate.max_task_loss) == ([500, 2500, 5000], 20, 0.02)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- 1", "no YAML mapping"),
        ("max_loss: 5%", "max_loss: is nothing that a gate has; it has teacher"),
        ("mirror_share: 0.5", "0.5% or 50%"),
        ("max_latency_ratio: fast", "'fast' is no number"),
        ("min_observations: 1.5", "1.5 is no whole number"),
        ("steps: 5", "5 is no list"),
        ("max_duration: long", "no span of time"),
        ("teacher:", "teacher: is empty; leave the line out"),
        ("task_data:", "task_data: is empty; leave the line out"),
        ("max_task_loss:", "max_task_loss: is empty; leave the line out"),
        ("teacher: 5", "5 is no text"),
        ("task_data: [a.csv]", "['a.csv'] is no text"),
        ("{", "cannot be read"),
    ],
)
def test_a_gate_file_that_is_none_names_what_is_wrong(shell: Shell, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "gate.yaml").write_text(content)
    code, _, err = shell.run("serve", "canary", "bot", "-m", "bot@2", "--gate-file", f"{tmp_path}/gate.yaml")
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())


def test_replicas_by_load_come_and_go_after_the_times_that_were_said(shell: Shell, plane: FakeControlPlane) -> None:
    assert shell.run("serve", "deploy", "bot", "-m", "bot@1", "--autoscale", "0:3", "--scale-delay", "5s:2m")[0] == 0
    scaling = plane.deployments["bot"].autoscaling
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 3)
    assert (scaling.scale_up_delay.seconds, scaling.scale_down_delay.seconds) == (5, 120)


def test_what_is_said_of_scaling_is_changed_in_what_there_is(shell: Shell, plane: FakeControlPlane, bot) -> None:
    plane.next_revision = None
    code, _, err = shell.run("serve", "update", "bot", "--scale-delay", "5s:2m")
    assert (code, "--autoscale" in err) == (2, True)
    delays = {"scale_up_delay": Duration(seconds=5), "scale_down_delay": Duration(seconds=120)}
    known = pb.Autoscaling(min_replicas=0, max_replicas=4, target_ongoing_requests=2.0, **delays)
    bot.autoscaling.CopyFrom(known)

    def asked(*words: str) -> pb.Autoscaling:
        assert shell.run("serve", "update", "bot", *words)[0] == 0
        assert [*plane.asked[-1].update_mask.paths] == ["autoscaling"]
        return plane.asked[-1].deployment.autoscaling

    assert asked("--autoscale", "1:8") == pb.Autoscaling(
        min_replicas=1, max_replicas=8, target_ongoing_requests=2.0, **delays
    )
    found = asked("--scale-delay", "1m:1h")
    assert (found.max_replicas, found.scale_up_delay.seconds, found.scale_down_delay.seconds) == (4, 60, 3600)
    assert asked("--target-ongoing", "3").target_ongoing_requests == 3
    assert shell.run("serve", "update", "bot", "--replicas", "2")[0] == 0
    assert {*plane.asked[-1].update_mask.paths} == {"num_replicas", "autoscaling"}
    assert not plane.asked[-1].deployment.HasField("autoscaling")
    assert shell.run("serve", "update", "bot", "--replicas", "2", "--scale-delay", "5s:2m")[0] == 2


def test_the_gate_of_a_deployment_is_changed_where_it_is_or_taken_away(
    shell: Shell, plane: FakeControlPlane, bot
) -> None:
    plane.next_revision = None
    code, _, err = shell.run("serve", "update", "bot", "--teacher", "big@1")
    assert (code, "--gate" in err) == (2, True)
    bot.gate.CopyFrom(pb.CanaryGate(teacher="old@1", max_error_rate=0.01, steps=[500]))
    assert shell.run("serve", "update", "bot", "--teacher", "big@1")[0] == 0
    asked = plane.asked[-1]
    assert [*asked.update_mask.paths] == ["gate"]
    assert asked.deployment.gate == pb.CanaryGate(teacher="big@1", max_error_rate=0.01, steps=[500])
    assert shell.run("serve", "update", "bot", "--no-gate")[0] == 0
    assert ([*plane.asked[-1].update_mask.paths], plane.asked[-1].deployment.HasField("gate")) == (["gate"], False)
    assert shell.run("serve", "update", "bot", "--no-gate", "--teacher", "big@1")[0] == 2
    assert shell.run("serve", "update", "bot")[0] == 2


def test_what_somebody_else_changes_meanwhile_is_kept(shell: Shell, plane: FakeControlPlane, bot) -> None:
    plane.next_revision = None
    bot.gate.CopyFrom(pb.CanaryGate(teacher="big@1"))
    bot.etag = "1"

    def someone(deployment: pb.Deployment) -> None:
        deployment.gate.max_error_rate, deployment.etag = 0.01, "2"

    plane.meanwhile = [someone]
    assert shell.run("serve", "update", "bot", "--mirror", "50%")[0] == 0
    assert [each.etag for each in plane.asked] == ["1", "2"]
    gate = pb.CanaryGate(teacher="big@1", max_error_rate=0.01, mirror_share=0.5)
    assert plane.asked[-1].deployment.gate == gate
    assert shell.run("serve", "update", "bot", "--cpus", "2")[0] == 0
    assert plane.asked[-1].etag == "", "this goes into nothing that was read"
    plane.meanwhile = [lambda deployment: setattr(deployment, "etag", deployment.etag + "!")] * 100
    code, _, err = shell.run("serve", "update", "bot", "--mirror", "20%")
    assert (code, "somebody changed it" in err) == (1, True)


def test_limits_of_an_engine_are_added_to_those_it_has(shell: Shell, plane: FakeControlPlane, bot) -> None:
    plane.next_revision = None
    bot.engine.CopyFrom(pb.EngineOptions(name="transformers", limits={"kv_tokens": 1024, "max_rows": 4}))
    assert shell.run("serve", "update", "bot", "--engine-limit", "kv_tokens=4096")[0] == 0
    assert plane.asked[-1].deployment.engine.limits == {"kv_tokens": 4096, "max_rows": 4}
    limits = ("--engine", "vllm", "--engine-limit", "max_num_seqs=8")
    assert shell.run("serve", "update", "bot", *limits)[0] == 0
    assert plane.asked[-1].deployment.engine == pb.EngineOptions(name="vllm", limits={"max_num_seqs": 8})
    assert shell.run("serve", "deploy", "other", "-m", "bot@1", *limits)[0] == 0
    assert plane.deployments["other"].engine.name == "vllm"


def test_the_project_is_that_of_the_environment(shell: Shell, plane: FakeControlPlane, monkeypatch) -> None:
    monkeypatch.setenv("ATHANOR_PROJECT", "research")
    shell.run("serve", "deploy", "one", "-m", "bot@1")
    shell.run("serve", "deploy", "two", "-m", "bot@1", "--project", "other")
    assert [plane.deployments[name].project for name in ("one", "two")] == ["research", "other"]


def test_that_it_is_taken_down_is_told_in_any_form(shell: Shell, plane: FakeControlPlane, bot) -> None:
    code, out, err = shell.run("serve", "delete", "bot", "-o", "yaml")
    assert (code, out, err) == (0, "name: bot\nstate: GONE\n", "bot is being taken down\n")


WISHES = ("update bot --replicas 4", "canary bot -m bot@2", "traffic bot 25%", "promote bot", "rollback bot")


@pytest.mark.parametrize("words", WISHES)
def test_a_command_ends_when_the_gateway_goes_by_what_it_asked(
    shell: Shell, plane: FakeControlPlane, bot, words: str
) -> None:
    plane.next_revision, plane.looks_behind = None, 1
    code, out, _ = shell.run("serve", *words.split(), "-o", "yaml")
    assert (code, out.startswith("name: bot\n")) == (0, True)
    assert plane.looks > plane.looks_behind
    assert "observed_generation: '1'" in out
    plane.looks_behind = 10**9
    code, _, err = shell.run("serve", *words.split(), "--timeout", "0")
    assert (code, "bot answers, and not yet as it was asked to, after 0 s" in err) == (124, True)
    assert shell.run("serve", *words.split(), "--detach")[0] == 0


@pytest.mark.parametrize("words", WISHES)
def test_a_command_that_ends_with_a_deployment_that_failed_is_exit_code_1(
    shell: Shell, plane: FakeControlPlane, bot, words: str
) -> None:
    plane.next_revision, bot.state = None, pb.DEPLOYMENT_STATE_FAILED
    code, _, err = shell.run("serve", *words.split())
    assert (code, "answers for" in err, "takes 25%" in err) == (1, False, False)


def test_going_back_waits_for_the_version_that_comes_up_again(shell: Shell, plane: FakeControlPlane, bot) -> None:
    plane.next_revision = pb.Revision(number=2, model="bot@0", phase=STARTING)
    code, _, err = shell.run("serve", "rollback", "bot", "--timeout", "0")
    assert (code, "bot@0 comes up again as revision 2" in err) == (124, True)


def test_what_a_canary_has_shown_stands_beside_what_is_needed(shell: Shell, plane: FakeControlPlane, bot) -> None:
    gate = pb.CanaryGate(max_latency_ratio=1.5, task_data="/d.csv", steps=[500, 2500])
    bot.gate.CopyFrom(gate)
    revision = bot.revisions.add(number=2, model="bot@2", phase=CANARY, weight=500, gate=gate, teacher="big@1")
    needs = {"needed_within": 20, "needed_beyond": 120}
    for name, mean, limit, verdict in (
        ("divergence", 0.004, 0.1, "kept"),
        ("agreement", -0.01, 0.05, "within the limit so far"),
        ("latency", 0.12, 0.5, "kept"),
        ("task", 0.02, 0.05, "within the limit so far"),
    ):
        revision.figures.add(
            name=name, mean=mean, limit=limit, observations=80, evidence_within=7.5, verdict=verdict, **needs
        )
    revision.figures.add(
        name="live", limit=0.05, needed_beyond=120, evidence_beyond=1, verdict="no requests of its own yet"
    )
    code, out, _ = shell.run("serve", "describe", "bot")
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines() if line.strip()}
    assert code == 0
    assert lines["Gate"].startswith("Gate judges canaries beside the first teacher of each, on the examples of /d.csv")
    assert "The gate of revision 2, beside big@1, on the examples of /d.csv, by steps of 5%, 25%:" in out
    assert lines["divergence"] == "divergence +0.004 nats +0.1 nats 80 7.5 of 20 0 of 120 kept"
    assert lines["agreement"].startswith("agreement 1% agreement -5% 80 ")
    assert lines["latency"].startswith("latency 12% took over 1.5 times as long 50% of requests 80 7.5 of 20 ")
    assert lines["task"].startswith("task -2% right answers -5% 80 ")
    assert lines["live"] == "live 5% 0 not waited for 1 of 120 no requests of its own yet"
