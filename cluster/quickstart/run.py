"""The quickstart, step by step: cluster up, data, teacher, student, report, endpoint, one question, what to do next.

It uses what every user has: the local cluster, two job files, the client, HTTP. Any step that fails ends it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from athanor.v1 import deployment_service_pb2, job_pb2
from grpc import StatusCode

from cluster.access import Access, find_access
from cluster.cli.job_file import read_job_file
from cluster.cli.job_view import job_view
from cluster.cli.output import say, talk_console
from cluster.client import AthanorClient
from cluster.errors import ClusterError
from cluster.home import Home
from cluster.local import UpOptions, UpResult, down, up
from cluster.quickstart.support_desk import Desk, Question, Sizes, make_desk, write_desk
from cluster.rpc import RequestFailed
from trainer.report import table_rows

JOB_FILES = {kind: Path(__file__).with_name(f"{kind}.yaml") for kind in ("teacher", "student")}
DEPLOYMENT = "quickstart-support-bot"  # its own: an earlier one of this name is taken down
_JOB_TIMEOUT_S = 1800.0
_DEPLOY_TIMEOUT_S = 240.0


class QuickstartFailed(ClusterError):
    """A step did not do what it should."""


@dataclass
class Clock:
    """Seconds of each step."""

    begin: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, words: str) -> Iterator[None]:
        say(f"\n{words}")
        begin = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - begin, 1)

    def total(self) -> dict[str, float]:
        return {"total": round(time.monotonic() - self.begin, 1), **self.seconds}


@dataclass(frozen=True)
class Answer:
    """A question to the served student."""

    prompt: str
    completion: str
    expected: str

    def as_document(self) -> dict[str, str]:
        return {"prompt": self.prompt, "completion": self.completion, "expected": self.expected}


def run_quickstart(home: Home, *, num_cpus: int | None = None, take_down: bool = False) -> dict[str, Any]:
    """All of it; the figures as one document. Raises when a step fails. With `take_down` nothing is left running."""
    try:
        return _run(home, num_cpus, take_down)
    finally:
        if take_down:
            say("\nStopping the cluster")
            down(home, say)


def _run(home: Home, num_cpus: int | None, take_down: bool) -> dict[str, Any]:
    clock = Clock()
    with clock.step("up", "1/6  Starting a cluster on this machine: Ray, and the control plane that takes jobs"):
        cluster = up(home, UpOptions(num_cpus=num_cpus), say)
    with clock.step("data", "2/6  Writing the data: questions to a support desk, made by a grammar"):
        desk = _write_data(home.quickstart_dir)
    access = find_access(Access(address=cluster.record.control_plane))
    with AthanorClient(access.address, **access.for_client()) as client:
        with clock.step("teacher", "3/6  A teacher learns from the labelled conversations"):
            teacher = _run_job(client, home.quickstart_dir / "teacher.yaml")
        with clock.step("student", "4/6  A student, eight times smaller, learns from what the teacher answers"):
            student = _run_job(client, home.quickstart_dir / "student.yaml")
        report = _show_report(student)
        with clock.step("deploy", "5/6  Serving the student through an OpenAI-compatible endpoint"):
            endpoint = _deploy(client, student.published_model)
        with clock.step("ask", "6/6  Asking it a question of a kind that nobody trained on"):
            answer = ask(endpoint, DEPLOYMENT, _plain_question(desk.evaluation), token=access.secret)
            say(f"  customer: {answer.prompt}\n  student:  {answer.completion}\n  expected: {answer.expected}")
    if not take_down:
        _say_next(home, cluster, student, endpoint, answer)
    return {
        **figures(report),
        "jobs": {"teacher": teacher.uid, "student": student.uid},
        "endpoint": endpoint,
        "answer": answer.as_document(),
        "report": student.report_path,
        "seconds": clock.total(),
    }


def figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the document that comes out of the transfer report."""
    roles = ("teacher", "student", "baseline")
    return {
        **{role: {"exact_match": report["metrics"][role]["exact_match"]} for role in roles},
        "retention": report["retention"],
        "gain": report["gain"],
        "gain_ci95": report["gain_ci95"],
        "parameters": {role: report["parameters"][role] for role in ("teacher", "student")},
    }


def ask(endpoint: str, model: str, question: Question, *, token: str = "", timeout_s: float = 60.0) -> Answer:
    """Ask an OpenAI-compatible endpoint, greedily."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = {
        "model": model,
        "messages": [{"role": "user", "content": question.text}],
        "max_tokens": 32,
        "temperature": 0,
    }
    try:
        url = f"{endpoint}/chat/completions"
        reply = httpx.post(url, json=request, headers=headers, timeout=timeout_s, trust_env=False)
    except httpx.HTTPError as error:
        raise QuickstartFailed("ENDPOINT_SILENT", f"{endpoint} did not answer: {error}") from error
    if reply.status_code != httpx.codes.OK:
        raise QuickstartFailed("ENDPOINT_REFUSED", f"{endpoint} answered {reply.status_code}: {reply.text[:300]}")
    completion = str(reply.json()["choices"][0]["message"]["content"]).strip()
    if not completion:
        raise QuickstartFailed("ENDPOINT_SILENT", f"{endpoint} gave an empty answer to {question.text!r}")
    return Answer(question.text, completion, question.phrasing.answer)


def _write_data(directory: Path) -> Desk:
    desk = make_desk(Sizes())
    write_desk(desk, directory)
    for path in JOB_FILES.values():
        shutil.copy(path, directory)
    say(f"  {len(desk.labelled)} labelled questions for the teacher, for example: {desk.labelled[0].text!r}")
    say(f"  {len(desk.unlabelled)} unlabelled ones for the student, {len(desk.few)} labelled ones for the baseline")
    say(f"  {len(desk.evaluation)} questions, phrased as in none of those, to measure all three; all in {directory}")
    return desk


def _run_job(client: AthanorClient, job_file: Path) -> job_pb2.Job:
    """Submit a job file and follow it to its good end."""
    job = client.create_job(read_job_file(str(job_file)))
    say(f"  job {job.uid}, from {job_file}")
    with job_view(job.kind) as view:
        for change in client.follow_job(job.uid, timeout_s=_JOB_TIMEOUT_S):
            view.change(change)
            job = change.job
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        words = f"{job.reason}: {job.message}".strip(": ")
        raise QuickstartFailed("JOB_FAILED", f"{job.uid} did not succeed; {words}; see: athanor job logs {job.uid}")
    say(f"  published as {job.published_model}")
    return job


def _show_report(student: job_pb2.Job) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(Path(student.report_path).with_name("report.json").read_text())
    say("")
    _print_rows(table_rows(report))
    say(f"\n  the report as a page: {student.report_path}")
    return report


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows[1:]:
        table.add_row(*row)
    talk_console().print(table)


def _deploy(client: AthanorClient, model: str) -> str:
    """Serve this version under the quickstart's name, in place of what an earlier run left there; the endpoint."""
    _delete_deployment(client)
    wanted = deployment_service_pb2.Deployment(name=DEPLOYMENT, model=model, num_replicas=1)
    client.create_deployment(wanted)
    deployment = client.wait_deployment(DEPLOYMENT, timeout_s=_DEPLOY_TIMEOUT_S)
    if deployment.state != deployment_service_pb2.DEPLOYMENT_STATE_READY:
        raise QuickstartFailed("DEPLOYMENT_FAILED", f"{DEPLOYMENT} does not answer: {deployment.message}")
    say(f"  {deployment.resolved_model} answers at {deployment.endpoint}")
    return deployment.endpoint


def _delete_deployment(client: AthanorClient, *, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    asked = False
    while time.monotonic() < deadline:
        try:
            client.get_deployment(DEPLOYMENT)
            if not asked:
                client.delete_deployment(DEPLOYMENT)
                asked = True
        except RequestFailed as error:
            if error.code != StatusCode.NOT_FOUND:
                raise
            return
        time.sleep(0.5)
    raise QuickstartFailed("DEPLOYMENT_STAYS", f"the earlier {DEPLOYMENT} was not taken down within {timeout_s:g} s")


def _plain_question(questions: Sequence[Question]) -> Question:
    """The first that is only its phrasing: short, with no slip of the finger."""
    return next(question for question in questions if question.text.endswith(question.phrasing.thing))


def _say_next(home: Home, cluster: UpResult, student: job_pb2.Job, endpoint: str, answer: Answer) -> None:
    request = json.dumps({"model": DEPLOYMENT, "messages": [{"role": "user", "content": answer.prompt}]})
    token = f"  (token in {cluster.record.ray_token_path})" if cluster.record.ray_token_path else ""
    say("\nWhat next")
    say(f"  look at the cluster   {cluster.record.dashboard_url}{token}")
    say(f"  read the report       {student.report_path}")
    header = f"-H 'Content-Type: application/json' -H \"Authorization: Bearer $(cat {home.admin_token_path})\""
    say(f"  ask the student       curl {endpoint}/chat/completions {header} -d {shlex.quote(request)}")
    say("  see jobs and models   athanor job list; athanor model list")
    say("  stop everything       athanor down")
