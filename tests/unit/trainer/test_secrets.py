from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import secrets
from trainer.errors import SpecError, UserError
from trainer.secrets import Redactor, log_in_to_hub, reveal, without_secrets
from trainer.spec import parse_spec

VALUE = "hf_s3cr3tValue"
SPEC = {
    "student": {"config": {"model_type": "llama"}},
    "data": {"train": "train.jsonl"},
    "training": {"max_steps": 1},
}


@pytest.fixture(autouse=True)
def _nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_revealed", set())


def test_a_file_comes_before_the_environment(tmp_path: Path) -> None:
    environ = {"ATHANOR_SECRET_HUB": "of the environment", "ATHANOR_SECRETS_DIR": str(tmp_path)}
    assert reveal("${secret:HUB}", "spec.hub.token", environ) == "of the environment"
    (tmp_path / "HUB").write_text("of the file\n")
    assert reveal("${secret:HUB}", "spec.hub.token", environ) == "of the file"


def test_a_missing_secret_names_field_and_places() -> None:
    with pytest.raises(UserError, match=r"spec\.hub\.token.*HUB.*ATHANOR_SECRET_HUB") as refused:
        reveal("${secret:HUB}", "spec.hub.token", {})
    assert refused.value.reason == "SECRET_NOT_FOUND"


@pytest.mark.parametrize("value", ["short", "two\nlines of it"])
def test_what_could_not_be_hidden_is_refused_without_being_shown(value: str) -> None:
    with pytest.raises(UserError) as refused:
        reveal("${secret:HUB}", "spec.hub.token", {"ATHANOR_SECRET_HUB": value})
    assert refused.value.reason == "SECRET_UNUSABLE"
    assert value not in str(refused.value)


def test_the_hub_is_told_the_value_and_the_spec_keeps_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("ATHANOR_SECRET_HUB", VALUE)
    spec = parse_spec("FineTune", {**SPEC, "hub": {"token": "${secret:HUB}"}})
    log_in_to_hub(spec.hub.token)
    assert os.environ.pop("HF_TOKEN") == VALUE
    assert VALUE not in spec.model_dump_json()
    assert without_secrets(f"401 for {VALUE}!") == "401 for ********!"


@pytest.mark.parametrize("token", [VALUE, "${secret:lower}", "x${secret:HUB}", "${secret:../HUB}"])
def test_a_token_itself_is_refused_and_not_repeated(token: str) -> None:
    with pytest.raises(SpecError, match=r"\$\{secret:NAME\}") as refused:
        parse_spec("FineTune", {**SPEC, "hub": {"token": token}})
    assert VALUE not in str(refused.value)
    assert refused.value.violations[0].path == "spec.hub.token"


@pytest.mark.parametrize(
    ("block", "path"),
    [
        ({"data": {"train": "${secret:HUB}.jsonl"}}, "spec.data.train"),
        ({"student": {"config": {"model_type": "llama", "x": ["${secret:HUB}"]}}}, "spec.student.config"),
    ],
)
def test_a_secret_elsewhere_is_refused(block: dict[str, object], path: str) -> None:
    with pytest.raises(SpecError, match=r"hub\.token only") as refused:
        parse_spec("FineTune", {**SPEC, **block})
    assert any(path in f"{each.path} {each.message}" for each in refused.value.violations)


@given(st.lists(st.sampled_from([VALUE, VALUE[:5], "hf_", "words ", "\n"]), max_size=12), st.data())
def test_however_the_stream_is_cut_no_value_passes_and_nothing_else_is_lost(
    words: list[str], data: st.DataObject
) -> None:
    text = "".join(words).encode()
    secrets._revealed.add(VALUE)
    redactor, shown, at = Redactor(), b"", 0
    while at < len(text):
        size = data.draw(st.integers(1, 7))
        shown += redactor.pass_on(text[at : at + size])
        at += size
    shown += redactor.rest()
    assert VALUE.encode() not in shown
    assert shown == text.replace(VALUE.encode(), b"********")
