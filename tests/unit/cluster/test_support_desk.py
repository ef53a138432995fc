"""The quickstart's data keeps its promises: no question twice, no evaluated phrasing trained on, each word known."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from cluster.quickstart.support_desk import Desk, Phrasing, Question, Sizes, all_phrasings, make_desk, write_desk

SIZES = Sizes()


@pytest.fixture(scope="module")
def desk() -> Desk:
    return make_desk(SIZES)


def parts(desk: Desk) -> dict[str, tuple[Question, ...]]:
    return {name: getattr(desk, name) for name in ("labelled", "unlabelled", "few", "evaluation")}


def test_there_are_at_least_forty_intents_and_many_phrasings(desk: Desk) -> None:
    assert len({question.phrasing.intent for question in desk.labelled}) == 48
    assert len({question.phrasing for question in desk.labelled}) > 1000


def test_sizes_are_as_asked(desk: Desk) -> None:
    assert {name: len(part) for name, part in parts(desk).items()} == {
        "labelled": SIZES.labelled,
        "unlabelled": SIZES.unlabelled,
        "few": SIZES.few,
        "evaluation": SIZES.evaluation,
    }


def test_every_intent_comes_up_equally_often(desk: Desk) -> None:
    for part in parts(desk).values():
        counts = Counter(question.phrasing.intent for question in part)
        assert len(counts) == 48
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_question_is_there_twice(desk: Desk) -> None:
    texts = [question.text for part in parts(desk).values() for question in part]
    assert len(texts) == len(set(texts))


def test_nobody_trained_on_an_evaluated_phrasing(desk: Desk) -> None:
    trained = {question.phrasing for part in (desk.labelled, desk.unlabelled, desk.few) for question in part}
    assert trained.isdisjoint({question.phrasing for question in desk.evaluation})


def test_what_is_evaluated_is_made_of_words_that_its_intent_was_trained_on(desk: Desk) -> None:
    def words(phrasing: Phrasing) -> set[tuple[str, str]]:
        return {(phrasing.intent, phrasing.template), (phrasing.intent, phrasing.thing)}

    for part in (desk.labelled, desk.unlabelled):
        trained = set().union(*(words(question.phrasing) for question in part))
        assert all(words(question.phrasing) <= trained for question in desk.evaluation)


def test_an_intent_has_one_short_answer_and_shares_it_with_none() -> None:
    answers: dict[str, set[str]] = {}
    for phrasing in all_phrasings():
        answers.setdefault(phrasing.answer, set()).add(phrasing.intent)
    assert len(answers) == 48
    assert all(len(intents) == 1 for intents in answers.values())
    assert max(len(answer.split()) for answer in answers) <= 12


def test_the_same_seed_says_the_same_and_another_does_not(desk: Desk) -> None:
    assert make_desk(SIZES) == desk
    assert make_desk(SIZES, seed=8) != desk


def test_the_files_are_chat_rows_and_the_unlabelled_have_no_answer(desk: Desk, tmp_path: Path) -> None:
    write_desk(desk, tmp_path)
    labelled = [json.loads(line)["messages"] for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    unlabelled = [json.loads(line)["messages"] for line in (tmp_path / "unlabelled.jsonl").read_text().splitlines()]
    assert [[message["role"] for message in row] for row in labelled] == [["user", "assistant"]] * SIZES.labelled
    assert [[message["role"] for message in row] for row in unlabelled] == [["user"]] * SIZES.unlabelled
    assert labelled[0][1]["content"] == desk.labelled[0].phrasing.answer
