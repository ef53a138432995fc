"""Labels are the same however often their writing was stopped, and those without an end are counted aloud."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_jobs import distill_job, fine_tune_job, write_chats
from trainer.errors import UserError
from trainer.faculty import Faculty
from trainer.generate import group_size
from trainer.labels import read_labels
from trainer.listener import Silent, Stopped
from trainer.peers import Peers
from trainer.prepare import prepare
from trainer.prepared import Prepared
from trainer.stages import label_groups, longest_label, run_stages, write_labels
from trainer.tokenizer import train_tokenizer


class Scribe:
    """Writes what depends on all prompts of a call, as rounding does; `unended` prompts are never done."""

    def __init__(self, unended=()):
        self.calls, self.unended = [], unended

    def generate(self, prompts, max_new_tokens):
        self.calls.append([tuple(prompt) for prompt in prompts])
        mark = 5 + sum(map(len, prompts)) % 100
        return [[mark] * (max_new_tokens if tuple(prompt) in self.unended else 3) for prompt in prompts]


class Heard(Silent):
    """Remembers events and asks to stop at every question, if it shall."""

    def __init__(self, *, stops=False):
        self.events, self.stops, self.done = [], stops, []

    def progress(self, stage, step, total, **figures):
        self.done.append((step, total))

    def event(self, reason, message):
        self.events.append((reason, message))

    def should_stop(self):
        return self.stops


@pytest.fixture
def job(tmp_path):
    """Makes a prepared job whose teacher is to write the completions of 40 prompts."""
    train_tokenizer(["card lost top up refund"] * 4, 320).save_pretrained(tmp_path / "teacher")

    def make(name, **objective):
        data = {"train": str(write_chats(tmp_path / "asked.jsonl", 40, answered=False))}
        ctx = distill_job(tmp_path / name, tmp_path / "teacher", data=data, objective={"seq_kd": True, **objective})
        prepare(ctx)
        return ctx

    return make


def test_groups_are_a_pure_function_within_bounds(job):
    prompts = list(Prepared.open(job("bot")).prompts)
    groups = label_groups(prompts, 30)
    assert len(groups) >= 10
    assert label_groups(prompts[::-1], 30) == groups
    assert sorted(prompt.sample_id for group in groups for prompt in group) == list(range(40))
    [whole] = label_groups(prompts[:1], 1 << 20)
    assert len(whole) == 1
    for group in label_groups(prompts * 200, 30):
        assert len(group) <= group_size([prompt.input_ids for prompt in group], 30)


def test_stopped_after_every_group_writes_the_same_labels(job):
    whole, cut = job("whole"), job("cut")
    plain, scribe = Scribe(), Scribe()
    write_labels(whole, Peers.alone(), plain, Heard())
    stops = 0
    for _ in plain.calls:
        with pytest.raises(Stopped):
            write_labels(cut, Peers.alone(), scribe, Heard(stops=True))
        stops += 1
    assert stops >= 3
    heard = Heard()
    write_labels(cut, Peers.alone(), scribe, heard)
    assert scribe.calls == plain.calls
    assert read_labels(cut.labels_dir) == read_labels(whole.labels_dir)
    assert list(Prepared.open(cut).train) == list(Prepared.open(whole).train)


def test_a_group_that_was_torn_is_done_anew_as_a_whole(job):
    whole, cut = job("whole"), job("cut")
    plain, again = Scribe(), Scribe()
    write_labels(whole, Peers.alone(), plain, Heard())
    with pytest.raises(Stopped):
        write_labels(cut, Peers.alone(), Scribe(), Heard(stops=True))
    part = cut.label_path(0)
    part.write_bytes(part.read_bytes()[:-5])
    heard = Heard()
    write_labels(cut, Peers.alone(), again, heard)
    assert again.calls == plain.calls
    assert heard.done[-1] == (40, 40)
    assert read_labels(cut.labels_dir) == read_labels(whole.labels_dir)


def test_a_label_has_the_room_of_a_sample_and_not_that_of_an_answer_in_the_evaluation(job):
    ctx, given = job("bot"), job("given", seq_kd_max_new_tokens=11)
    prompts = Prepared.open(ctx).prompts
    assert ctx.spec.evaluate.max_new_tokens == 8
    assert longest_label(ctx, prompts) == 64 - min(len(prompt.input_ids) for prompt in prompts)
    assert longest_label(given, prompts) == 11


def test_a_teacher_of_fewer_positions_than_samples_may_have_is_refused_before_any_work(job):
    ctx = job("bot")
    (Path(ctx.teacher) / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 63}))
    scribe = Scribe()
    with pytest.raises(UserError, match=r"max_length is 64, but .* has 63 positions") as error:
        run_stages(ctx, Peers.alone(), Faculty.alone(scribe), Heard(), engine="torch")
    assert error.value.reason == "MAX_LENGTH"
    assert scribe.calls == []


def test_rows_that_are_cut_or_dropped_are_said_before_learning(tmp_path):
    data = {"train": str(write_chats(tmp_path / "chats.jsonl", 30)), "max_length": 10}
    ctx, heard = fine_tune_job(tmp_path / "cut", data=data), Heard(stops=True)
    counts = prepare(ctx).counts["train"]
    assert counts["cut"] > 0
    with pytest.raises(Stopped):
        run_stages(ctx, Peers.alone(), None, heard, engine="torch")
    words = f"train: of 30 rows {counts['cut']} are cut to data.max_length (10 tokens) and {counts['dropped']} dropped"
    assert [message.startswith(words) for reason, message in heard.events if reason == "DATA_CUT"] == [True]


def test_completions_that_samples_have_no_room_for_are_said(job):
    ctx = job("bot")
    prompts = Prepared.open(ctx).prompts
    endless = {prompt.input_ids for prompt in prompts}
    heard = Heard()
    write_labels(ctx, Peers.alone(), Scribe(endless), heard)
    shortest = min(len(prompt.input_ids) for prompt in prompts)
    cut = sum(len(prompt.input_ids) > shortest for prompt in prompts)
    assert [reason for reason, _ in heard.events] == ["DATA_CUT", "LABELS_UNENDED"]
    assert f"of 40 rows {cut} are cut to data.max_length (64 tokens) and 0 dropped" in heard.events[0][1]


def test_completions_without_an_end_are_counted_aloud_once(job):
    ctx = job("bot", seq_kd_max_new_tokens=6)
    endless = {prompt.input_ids for prompt in Prepared.open(ctx).prompts[:3]}
    heard, later = Heard(), Heard()
    write_labels(ctx, Peers.alone(), Scribe(endless), heard)
    unended = sum(prompt.input_ids in endless for prompt in Prepared.open(ctx).prompts)
    [(reason, message)] = heard.events
    assert reason == "LABELS_UNENDED"
    assert message.startswith(f"{unended} of 40 written completions did not end within 6 tokens")
    write_labels(ctx, Peers.alone(), Scribe(endless), later)
    assert later.events == []
