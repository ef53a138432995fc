"""From a job file to samples: once, whole, the same after a restart, with every row accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.batch import NOT_LEARNED
from trainer.errors import TrainerError, UserError
from trainer.job import JobContext
from trainer.labels import LabelWriter
from trainer.prepare import finish_labels, prepare
from trainer.prepared import Prepared
from trainer.spec import parse_spec
from trainer.tokenizer import train_tokenizer

INTENTS = ["card_arrival", "top_up", "lost_card", "exchange_rate"]
Job = Callable[..., JobContext]


def csv(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("text,category\n" + "".join(f"{text},{category}\n" for text, category in rows))
    return str(path)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    rows = [(f"question {at} about {INTENTS[at % 4]}", INTENTS[at % 4]) for at in range(40)]
    return {"train": csv(tmp_path / "train.csv", rows[:30]), "eval": csv(tmp_path / "eval.csv", rows[30:])}


@pytest.fixture
def job(tmp_path: Path, sources: dict[str, str]) -> Job:
    """Makes a job's context; keywords replace parts of its spec."""

    def make(name: str = "bot-abcdefgh", data: dict[str, Any] | None = None, **spec: Any) -> JobContext:
        columns = {"prompt": "text", "completion": "category"}
        whole = {
            "student": {"config": {"model_type": "llama"}},
            "training": {"max_steps": 1},
            "data": {**sources, "format": "prompt_completion", "columns": columns, "max_length": 64, **(data or {})},
            **spec,
        }
        kind = "Distill" if "teachers" in spec else "FineTune"
        return JobContext(tmp_path / name, kind, parse_spec(kind, whole))

    return make


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    train_tokenizer(["question about " + " ".join(INTENTS)] * 4, 320).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


def test_every_row_becomes_a_sample_with_its_completion_learned(job: Job) -> None:
    prepared = prepare(job())
    assert [sample["sample_id"] for sample in prepared.train] == list(range(30))
    for at, sample in enumerate(prepared.train):
        learned = [label for label in sample["labels"] if label != NOT_LEARNED]
        assert prepared.tokenizer.decode(learned) == INTENTS[at % 4] + "<|end|>"
    assert len(prepared.eval) == len(prepared.eval_prompts) == 10
    assert len(prepared.prompts) == 0
    assert prepared.eval_prompts[0].reference == INTENTS[30 % 4]
    assert prepared.counts["train"] == {"rows": 30, "samples": 30, "cut": 0, "dropped": 0}


def test_what_was_made_is_found_again_even_without_the_source(job: Job, sources: dict[str, str]) -> None:
    ctx = job()
    before = prepare(ctx)
    for source in sources.values():
        Path(source).unlink()
    after = prepare(ctx)
    assert after.record == before.record
    assert list(after.train) == list(before.train)
    assert Prepared.open(ctx).record == before.record


def test_other_settings_are_prepared_anew(job: Job) -> None:
    prepare(job())
    assert len(prepare(job(data={"max_samples": 7})).train) == 7


def test_nothing_is_left_beside_what_was_prepared(job: Job) -> None:
    ctx = job()
    prepare(ctx)
    assert sorted(path.name for path in ctx.job_dir.iterdir()) == ["prepared"]
    assert not (ctx.prepared_dir / "cache").exists()


def test_a_preparation_that_was_killed_is_done_again(job: Job) -> None:
    ctx = job()
    (ctx.job_dir / ".prepared" / "train").mkdir(parents=True)
    (ctx.job_dir / ".prepared" / "train" / "data.arrow").write_bytes(b"torn")
    with pytest.raises(TrainerError) as caught:
        Prepared.open(ctx)
    assert caught.value.reason == "NOT_PREPARED"
    assert len(prepare(ctx).train) == 30


def test_two_jobs_with_the_same_data_agree(job: Job) -> None:
    one, other = prepare(job("a-11111111")), prepare(job("b-22222222"))
    assert one.data_fingerprint == other.data_fingerprint
    assert list(one.train) == list(other.train)


def test_the_fingerprint_is_of_the_rows_used(job: Job) -> None:
    whole = prepare(job("a-11111111")).data_fingerprint
    part = prepare(job("b-22222222", data={"max_samples": 7})).data_fingerprint
    assert whole["eval"] == part["eval"]
    assert whole["train"] != part["train"]


def test_samples_are_drawn_by_the_seed_and_evaluation_takes_the_first(job: Job) -> None:
    def drawn(name: str, seed: int) -> list[int]:
        spec = {"training": {"max_steps": 1, "seed": seed}, "evaluate": {"max_samples": 3}}
        prepared = prepare(job(name, data={"max_samples": 9}, **spec))
        assert [prompt.sample_id for prompt in prepared.eval_prompts] == [0, 1, 2]
        return [sample["sample_id"] for sample in prepared.train]

    assert drawn("a-11111111", 7) == drawn("b-22222222", 7) != drawn("c-33333333", 8)


def test_the_baseline_has_its_own_labels(job: Job, tmp_path: Path) -> None:
    few = csv(tmp_path / "few.csv", [("where is it", "card_arrival")] * 5)
    prepared = prepare(job(evaluate={"baseline": {"train": few, "max_samples": 4}}))
    assert (len(prepared.samples("baseline")), len(prepared.samples("student"))) == (4, 30)
    assert set(prepared.data_fingerprint) == {"train", "baseline", "eval"}


def test_long_samples_are_cut_counted_and_dropped_when_nothing_is_left(job: Job, tmp_path: Path) -> None:
    rows = [("short", "top_up"), ("short", "x " * 100), ("y " * 100, "top_up")]
    prepared = prepare(job(data={"train": csv(tmp_path / "long.csv", rows)}))
    assert prepared.counts["train"] == {"rows": 3, "samples": 2, "cut": 1, "dropped": 1}
    assert max(prepared.train.lengths) == 64
    with pytest.raises(UserError, match="none of the 1 rows of train has anything to learn"):
        prepare(job("b-22222222", data={"train": csv(tmp_path / "longest.csv", rows[2:])}))


def test_text_has_no_questions(job: Job) -> None:
    prepared = prepare(job(data={"format": "text", "columns": {"text": "text"}}))
    assert (len(prepared.train), len(prepared.eval), len(prepared.eval_prompts)) == (30, 10, 0)


def test_without_evaluation_data_there_is_none(job: Job) -> None:
    prepared = prepare(job(data={"eval": None}))
    assert (len(prepared.eval), len(prepared.eval_prompts)) == (0, 0)


def test_a_distilled_student_takes_the_teachers_tokenizer(job: Job, teacher: str) -> None:
    prepared = prepare(job(teachers=[{"model": teacher}]))
    assert len(prepared.tokenizer) <= 320
    assert (prepared.pad_id, prepared.tokenizer.eos_token_id) == (0, 4)


def test_a_student_that_speaks_otherwise_is_refused(job: Job, teacher: str, tmp_path: Path) -> None:
    train_tokenizer(["quite another language"] * 9, 320).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError) as caught:
        prepare(job(teachers=[{"model": teacher}], student={"model": str(tmp_path / "other")}))
    assert caught.value.reason == "TOKENIZER_MISMATCH"


@pytest.fixture
def unlabelled(job: Job, teacher: str, tmp_path: Path) -> JobContext:
    path = tmp_path / "prompts.jsonl"
    questions = [f"question {at}" for at in range(12)] + ["y " * 100]
    path.write_text("".join(json.dumps({"text": question}) + "\n" for question in questions))
    return job(data={"train": str(path)}, teachers=[{"model": teacher}], objective={"seq_kd": True})


def test_prompts_for_the_teacher_leave_room_for_an_answer(unlabelled: JobContext) -> None:
    prepared = prepare(unlabelled)
    assert [prompt.text for prompt in prepared.prompts] == [f"question {at}" for at in range(12)]
    assert prepared.counts["train"] == {"rows": 13, "samples": 12, "cut": 0, "dropped": 1}
    with pytest.raises(TrainerError, match="has not written"):
        _ = prepared.train


def test_written_labels_become_the_training_set(unlabelled: JobContext) -> None:
    prepared = prepare(unlabelled)
    answer = prepared.tokenizer("top_up")["input_ids"]
    for rank in range(2):
        with LabelWriter(unlabelled.label_path(rank), max_new_tokens=64) as writer:
            for prompt in prepared.prompts[rank::2]:
                writer.write(prompt.sample_id, answer)
    finished = finish_labels(unlabelled)
    assert [sample["sample_id"] for sample in finished.train] == list(range(12))
    decoded = finished.tokenizer.decode(finished.train[3]["input_ids"])
    assert decoded == "<|user|>question 3<|end|><|assistant|>top_up<|end|>"
    assert finished.train[3]["labels"][-len(answer) - 1 :] == [*answer, finished.tokenizer.eos_token_id]
    for part in unlabelled.labels_dir.glob("part-*"):
        part.unlink()
    assert list(finish_labels(unlabelled).train) == list(finished.train)


def test_labels_that_are_missing_are_counted(unlabelled: JobContext) -> None:
    prepare(unlabelled)
    with pytest.raises(TrainerError, match="12 prompts have no completion yet"):
        finish_labels(unlabelled)


@pytest.mark.parametrize(
    ("content", "reason", "sentence"),
    [
        ("text,category\n", "DATA_EMPTY", "holds no rows"),
        ("text,label\nx,y\n", "COLUMN_MISSING", "no column 'category', only text, label"),
        ("text,category\nx,y\nx,\n", "DATA_INVALID", "row 2 has no completion"),
    ],
)
def test_data_that_cannot_be_learned_is_the_users_affair(
    job: Job, tmp_path: Path, content: str, reason: str, sentence: str
) -> None:
    (tmp_path / "bad.csv").write_text(content)
    with pytest.raises(UserError, match=sentence) as caught:
        prepare(job(data={"train": str(tmp_path / "bad.csv")}))
    assert caught.value.reason == reason


@pytest.fixture
def routed(tmp_path: Path, job: Job, teacher: str) -> Callable[..., JobContext]:
    """A job of two named teachers whose training rows name theirs; keywords as of `job`."""

    def make(who: list[str], column: str = "who", **spec: Any) -> JobContext:
        rows = "".join(f"question {at},{INTENTS[at % 4]},{name}\n" for at, name in enumerate(who))
        path = tmp_path / "routed.csv"
        path.write_text(f"text,category,who\n{rows}")
        columns = {"prompt": "text", "completion": "category", "teacher_key": column}
        teachers = [{"model": teacher, "name": "cards"}, {"model": teacher}, {"model": teacher, "name": "rates"}]
        return job(data={"train": str(path), "columns": columns}, teachers=teachers, **spec)

    return make


def test_each_sample_keeps_the_teacher_that_its_row_names(routed: Callable[..., JobContext]) -> None:
    prepared = prepare(routed(["rates", "cards", "teacher-1", "rates"], evaluate={"baseline": {"max_samples": 3}}))
    assert [one["teacher"] for one in prepared.train] == [2, 0, 1, 2]
    assert [one["teacher"] for one in prepared.baseline] == [0, 0, 0]
    assert len(prepared.eval) == 10  # its file has no column of teachers
    assert Prepared.open(prepared.ctx).train[3]["teacher"] == 2


@pytest.mark.parametrize(("name", "hint"), [("rate", "; did you mean 'rates'?"), ("", ""), ("zzz", "")])
def test_a_teacher_that_nobody_is_is_told_with_its_row(routed: Callable[..., JobContext], name: str, hint: str) -> None:
    with pytest.raises(UserError) as error:
        prepare(routed(["rates", name]))
    assert error.value.reason == "DATA_INVALID"
    words = f"row 2 column who names the teacher {name!r}, not one of cards, teacher-1, rates{hint}"
    assert str(error.value).endswith(words)


def test_a_column_of_teachers_that_is_not_there_is_told(routed: Callable[..., JobContext]) -> None:
    with pytest.raises(UserError, match=r"no column 'whom', .*did you mean 'who'.*data\.columns\.teacher_key") as error:
        prepare(routed(["rates"], column="whom"))
    assert error.value.reason == "COLUMN_MISSING"


def test_other_names_of_teachers_are_another_preparation(routed: Callable[..., JobContext], teacher: str) -> None:
    first = prepare(routed(["cards", "rates"]))
    assert [one["teacher"] for one in first.train] == [0, 2]
    turned = first.ctx.spec.model_dump(mode="json")
    turned["teachers"][0]["name"], turned["teachers"][2]["name"] = "rates", "cards"
    again = prepare(JobContext(first.ctx.job_dir, "Distill", parse_spec("Distill", turned)))
    assert [one["teacher"] for one in again.train] == [2, 0]
