"""The quickstart's own parts: its job files fit together, its document has the agreed shape, its question is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from cluster.job_file import read_job_file
from cluster.quickstart.run import DEPLOYMENT, JOB_FILES, QuickstartFailed, ask, figures
from cluster.quickstart.support_desk import Desk, Phrasing, Question
from trainer.spec import BaselineSpec, DistillSpec, parse_manifest

QUESTION = Question("where is my parcel", Phrasing("parcel", "status", "where is {x}", "parcel", framed=False))


def test_the_student_learns_from_what_the_teacher_publishes() -> None:
    teacher, student = (parse_manifest(read_job_file(str(JOB_FILES[kind]))).spec for kind in ("teacher", "student"))
    assert isinstance(student, DistillSpec)
    assert teacher.publish is not None
    assert student.teachers[0].model == f"{teacher.publish.model}@{teacher.publish.alias}"
    assert student.data.eval == teacher.data.eval
    assert student.objective.seq_kd
    assert student.teachers[0].shards == student.resources.student.workers == 2


def test_student_and_deployment_bear_the_name_of_the_quickstart() -> None:
    student = parse_manifest(read_job_file(str(JOB_FILES["student"]))).spec
    assert student.publish is not None
    assert student.publish.model.startswith("quickstart-")
    assert DEPLOYMENT.startswith("quickstart-")


def test_the_job_files_name_the_files_of_the_data() -> None:
    teacher, student = (parse_manifest(read_job_file(str(JOB_FILES[kind]))).spec for kind in ("teacher", "student"))
    assert isinstance(student.evaluate.baseline, BaselineSpec)
    named = (teacher.data.train, student.data.train, student.evaluate.baseline.train, student.data.eval)
    stems = [str(path).rsplit("/", 1)[-1].removesuffix(".jsonl") for path in named]
    assert stems == [part.name for part in fields(Desk)]


def test_the_figures_come_out_of_the_report() -> None:
    report = {
        "metrics": {
            "teacher": {"exact_match": 0.9, "perplexity": 1.1},
            "student": {"exact_match": 0.8, "perplexity": 1.2},
            "baseline": {"exact_match": 0.2, "perplexity": 9.3},
        },
        "retention": 0.89,
        "gain": 0.6,
        "gain_ci95": [0.5, 0.7],
        "parameters": {"teacher": 11, "student": 1, "baseline": 1},
        "headline": "not for this document",
    }
    assert figures(report) == {
        "teacher": {"exact_match": 0.9},
        "student": {"exact_match": 0.8},
        "baseline": {"exact_match": 0.2},
        "retention": 0.89,
        "gain": 0.6,
        "gain_ci95": [0.5, 0.7],
        "parameters": {"teacher": 11, "student": 1},
    }


class Endpoint(BaseHTTPRequestHandler):
    """Answers every question the same."""

    status = 200
    content = "It is on its way."
    seen: dict[str, object]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).seen = {"path": self.path, **json.loads(body)}
        reply = json.dumps({"choices": [{"message": {"content": self.content}}]}).encode()
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/bot/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_question_is_asked_as_any_client_would(endpoint: str) -> None:
    answer = ask(endpoint, "bot", QUESTION)
    assert Endpoint.seen["path"] == "/bot/v1/chat/completions"
    assert Endpoint.seen["messages"] == [{"role": "user", "content": "where is my parcel"}]
    assert answer.as_document() == {
        "prompt": "where is my parcel",
        "completion": "It is on its way.",
        "expected": "The state of the parcel is shown under Deliveries, Track.",
    }


@pytest.mark.parametrize(("status", "content", "words"), [(503, "x", "answered 503"), (200, " ", "empty answer")])
def test_an_endpoint_that_does_not_answer_fails_the_quickstart(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, status: int, content: str, words: str
) -> None:
    monkeypatch.setattr(Endpoint, "status", status)
    monkeypatch.setattr(Endpoint, "content", content)
    with pytest.raises(QuickstartFailed, match=words):
        ask(endpoint, "bot", QUESTION)


def test_an_endpoint_that_is_not_there_fails_the_quickstart() -> None:
    with pytest.raises(QuickstartFailed, match="did not answer"):
        ask("http://127.0.0.1:1/v1", "bot", QUESTION)
