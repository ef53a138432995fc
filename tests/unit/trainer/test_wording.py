"""Numbers in words, and the headline, which must not claim more than the interval allows."""

import pytest

from trainer import wording


def document(**changed):
    student = {"exact_match": 0.95, "exact_match_ci95": [0.94, 0.96], "perplexity": 1.2, "perplexity_ci95": [1.1, 1.3]}
    return {
        "kind": "Distill",
        "metrics": {"teacher": dict(student), "student": student, "baseline": dict(student)},
        "samples": 1000,
        "questions": 1000,
        "retention": 0.972,
        "retention_ci95": [0.96, 0.98],
        "gain": 0.314,
        "gain_ci95": [0.279, 0.348],
        "perplexity_to_teacher": 1.1,
        "perplexity_to_teacher_ci95": [1.05, 1.15],
        "perplexity_to_baseline": 0.8,
        "perplexity_to_baseline_ci95": [0.75, 0.85],
        "parameters": {"teacher": 10_000_000, "student": 1_700_000, "baseline": 1_700_000},
        "training": {"student": {"steps": 600, "loss": 0.1234567}},
        **changed,
    }


NO_ANSWERS = {"exact_match": None, "exact_match_ci95": None, "perplexity": 12.0, "perplexity_ci95": [11.5, 12.5]}
PERPLEXITY_ALONE = {
    "metrics": {role: dict(NO_ANSWERS) for role in ("teacher", "student", "baseline")},
    "retention": None,
    "retention_ci95": None,
    "gain": None,
    "gain_ci95": None,
}


def test_the_headline_of_a_transfer():
    assert wording.headline(document()) == (
        "The student keeps 97.2 % of its teacher's exact match with 17 % of its parameters, and beats the same student "
        "without a teacher by 31.4 points (95 % interval 27.9 to 34.8)."
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"retention": 1.031}, "The student reaches 103.1 % of its teacher's exact match"),
        (
            {"gain": 0.008, "gain_ci95": [-0.012, 0.028]},
            "but cannot be told apart from the same student without a teacher",
        ),
        ({"gain": 0.008, "gain_ci95": [-0.012, 0.028]}, "+0.8 points (95 % interval -1.2 to 2.8)"),
        ({"gain": 0.008, "gain_ci95": None}, "but cannot be told apart"),
        (
            {"gain": -0.1, "gain_ci95": [-0.14, -0.06]},
            "falls short of the same student without a teacher by 10.0 points",
        ),
        ({"gain": -0.1, "gain_ci95": [-0.14, -0.06]}, "(95 % interval 6.0 to 14.0)"),
        ({"gain": None, "gain_ci95": None}, "with 17 % of its parameters."),
        ({"parameters": {"teacher": None, "student": 5}}, "exact match, and beats"),
        ({"parameters": {"teacher": 5, "student": 5}}, "exact match, and beats"),
        ({"parameters": {"teacher": 10_000, "student": 83}}, "with 0.83 % of its parameters"),
        ({"parameters": {"teacher": 2, "student": 5}}, "with 2.5 times its parameters"),
        (
            PERPLEXITY_ALONE,
            "The student reaches a perplexity of 12.00 where its teacher has 12.00 with 17 % of its parameters",
        ),
        (
            PERPLEXITY_ALONE,
            "20.0 % lower than that of the same student without a teacher (95 % interval 15.0 to 25.0 %)",
        ),
        (
            PERPLEXITY_ALONE | {"perplexity_to_baseline_ci95": [0.7, 1.1]},
            "which the data cannot tell from no difference",
        ),
        ({"metrics": {}, "retention": None, "gain": None}, "was trained for 600 steps to a loss of 0.1235; it was not"),
        ({"metrics": {}, "training": {}}, "Nothing was measured."),
    ],
)
def test_the_headline_says_what_the_figures_allow(changed, said):
    assert said in wording.headline(document(**changed))


def test_the_headline_of_a_job_without_teacher():
    student = document()["metrics"]["student"]
    alone = document(kind="FineTune", metrics={"student": student}, retention=None, gain=None, gain_ci95=None)
    expected = "The model answers 95.0 % of 1,000 questions right (95 % interval 94.0 to 96.0)."
    assert wording.headline(alone) == expected


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (999_999, "1 M"),
        (1_748_576, "1.75 M"),
        (7_615_616_512, "7.62 B"),
    ],
)
def test_compact(count, said):
    assert wording.compact(count) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 0 s"), (130, "2 min 10 s"), (7325, "2 h 2 min")],
)
def test_duration(seconds, said):
    assert wording.duration(seconds) == said


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_loss():
    assert wording.interval([-0.0001, 0.02]) == "0.0 to 2.0"
    assert wording.points(-0.0001) == "0.0 points"
    assert wording.points(0.31) == "+31.0 points"


def test_number():
    assert [wording.number(value) for value in (None, 1.04, 999.97, 12345.6, 0.00012345)] == [
        "–",
        "1.040",
        "1,000",
        "12,346",
        "0.0001234",
    ]
