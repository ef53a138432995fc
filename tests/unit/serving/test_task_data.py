"""Labelled examples are read as they are written, and a file that is none is told by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.task_data import TaskDataError, is_right, read_task_data
from trainer.evaluate import is_exact_match

TURN = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is it?"}]
ANSWER = {"role": "assistant", "content": "Here."}


@pytest.fixture
def written(tmp_path: Path):
    """A file of this name and content."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@given(st.text(" \n\tab"), st.text(" \n\tab"))
def test_right_is_what_a_distillations_evaluation_counts_as_exact(answer, reference):
    assert is_right(answer, reference) == is_exact_match(answer, reference)


def test_prompts_and_conversations(written):
    rows = [{"prompt": "Where?", "completion": " Here.", "id": 3}, {"messages": [*TURN, ANSWER]}]
    found = read_task_data(written("a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")).examples
    assert [each.reference for each in found] == [" Here.", "Here."]
    assert (found[0].messages, found[0].text) == (({"role": "user", "content": "Where?"},), "Where?")
    assert (found[1].messages, found[1].text) == (tuple(TURN), "Where is it?")


def test_a_character_that_json_writes_in_two_halves_is_one(written):
    row = {"prompt": "Where? \U0001f600", "completion": "\U0001f600"}
    (found,) = read_task_data(written("a.jsonl", json.dumps(row))).examples
    assert (found.text, found.reference) == (row["prompt"], row["completion"])


def test_every_cell_of_a_csv_is_text(written):
    path = written("a.CSV", '\ufeffid,prompt,completion\r\n1,"How\nmuch, please?",007\r\n2,NA,null\r\n')
    found = read_task_data(path).examples
    assert [(each.text, each.reference) for each in found] == [("How\nmuch, please?", "007"), ("NA", "null")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "x", "neither a .jsonl nor a .csv"),
        ("a.jsonl", "", "holds no examples"),
        ("a.jsonl", "\n{\n", "line 2 is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", "[1]", "line 1 is not a JSON object"),
        ("a.jsonl", '{"prompt": "x"}', "line 1 has no text in `completion`"),
        ("a.jsonl", '{"prompt": 7, "completion": "x"}', "no text in `prompt`"),
        ("a.jsonl", json.dumps({"messages": TURN}), "no question with an answer"),
        ("a.jsonl", json.dumps({"messages": [ANSWER]}), "no question with an answer"),
        ("a.jsonl", json.dumps({"messages": []}), "no question with an answer"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "a role and a content"),
        ("a.jsonl", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", "prompt\nx\n", "no column 'completion'"),
        ("a.csv", "", "no column 'prompt'"),
        ("a.csv", "prompt,completion\nx\n", "line 2 has no text in `completion`"),
        ("a.csv", "prompt,completion\n", "holds no examples"),
        ("a.csv", 'prompt,"completion\n' + "a,b\n" * 40_000, "line 1 is no CSV: .*; close every quote"),
        ("a.csv", 'prompt,completion\na,b\na,"b\n' + "a,b\n" * 40_000, "line 3 is no CSV: .*; close every quote"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "\\ud83d", "completion": "b"}', "line 2 has half"),
        ("a.jsonl", '{"prompt": "a", "completion": "\\ude00 b"}', "line 1 has half of a character"),
        ("a.jsonl", json.dumps({"messages": [TURN[0], TURN[1] | {"content": "\ud83d"}, ANSWER]}), "line 1 has half"),
        ("a.jsonl", json.dumps({"messages": [*TURN, ANSWER | {"content": "\ud83d"}]}), "line 1 has half"),
    ],
)
def test_a_file_that_is_none_is_told_by_its_line(written, name, content, words):
    path = written(name, content)
    with pytest.raises(TaskDataError, match=words) as caught:
        read_task_data(path)
    assert str(path) in caught.value.message


def test_what_stands_in_a_wrong_file_is_told_to_nobody(written):
    with pytest.raises(TaskDataError) as caught:
        read_task_data(written("a.jsonl", '{"password": "swordfish"}'))
    assert "swordfish" not in caught.value.message
    assert "password" not in caught.value.message


def test_a_file_that_is_not_there_or_too_long(tmp_path, written, monkeypatch):
    with pytest.raises(TaskDataError, match="there is no file"):
        read_task_data(tmp_path / "a.jsonl")
    monkeypatch.setattr("serving.task_data.MOST_BYTES", 10)
    with pytest.raises(TaskDataError, match="has more than"):
        read_task_data(written("a.jsonl", '{"prompt": "x", "completion": "y"}'))


def test_another_file_than_was_checked_is_not_taken(written):
    path = written("a.jsonl", '{"prompt": "x", "completion": "y"}')
    sha256 = read_task_data(path).sha256
    assert read_task_data(path, sha256).sha256 == sha256
    path.write_text('{"prompt": "x", "completion": "z"}')
    with pytest.raises(TaskDataError, match="another file than when the canary was asked for"):
        read_task_data(path, sha256)


def test_the_order_depends_on_the_seed_alone(written):
    rows = "\n".join(json.dumps({"prompt": str(number), "completion": "y"}) for number in range(50))
    data = read_task_data(written("a.jsonl", rows))
    assert data.shuffled("one") == data.shuffled("one") != data.shuffled("two")
    assert sorted(each.text for each in data.shuffled("one")) == sorted(each.text for each in data.examples)
