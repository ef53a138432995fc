"""What a judge makes of a pair of answers, and how far two distributions are apart of which little is known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.backend import BackendRequest
from serving.divergence import agreement, label_agreement, label_divergence, mean_divergence, partial_kl
from serving.engine import Scored, TokenLogprob
from serving.errors import BackendFailed, Overloaded
from serving.judge import Finding, Judge
from serving.mirroring import MirroredPair, Outcome
from serving.reading import Labels
from serving.routes import Backend

VOCABULARY = 12
PROMPT, ANSWER = (1, 2), (3, 4, 5)


def logprobs(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [math.log(weight / total) for weight in weights]


def top(distribution: Sequence[float], num: int, came: int = 0) -> TokenLogprob:
    """What is told of a position at which the token `came`."""
    best = sorted(range(len(distribution)), key=distribution.__getitem__, reverse=True)[:num]
    return TokenLogprob(came, distribution[came], tuple((token, distribution[token]) for token in best))


def kl(teacher: Sequence[float], student: Sequence[float]) -> float:
    return sum(math.exp(p) * (p - q) for p, q in zip(teacher, student, strict=True))


distributions = st.lists(st.floats(0.01, 1.0), min_size=VOCABULARY, max_size=VOCABULARY).map(logprobs)


@given(
    distributions,
    distributions,
    st.integers(1, VOCABULARY),
    st.integers(1, VOCABULARY),
    st.integers(0, VOCABULARY - 1),
)
def test_it_is_never_more_than_the_divergence_itself(teacher, student, k, m, came):
    assert 0 <= partial_kl(top(teacher, k, came), top(student, m, came)) <= kl(teacher, student) + 1e-9


def test_an_unlikely_token_that_came_says_nothing_of_the_others():
    """Both say the same, but the student told of fewer tokens: nothing shows that they diverge."""
    same = logprobs([*[1.0] * 5, *[1e-9] * 7])
    assert partial_kl(top(same, 5, came=11), top(same, 2, came=11)) == pytest.approx(0, abs=1e-6)


@given(distributions, distributions)
def test_with_everything_known_it_is_the_divergence(teacher, student):
    both = partial_kl(top(teacher, VOCABULARY), top(student, VOCABULARY))
    assert both == pytest.approx(kl(teacher, student), abs=1e-6)


@given(distributions, st.integers(1, VOCABULARY))
def test_equals_do_not_diverge(teacher, k):
    assert partial_kl(top(teacher, k), top(teacher, k)) == pytest.approx(0, abs=1e-9)


def test_a_student_that_names_none_of_the_teachers_tokens_is_far_away():
    teacher = TokenLogprob(1, math.log(0.9), ((1, math.log(0.9)), (2, math.log(0.09))))
    student = TokenLogprob(1, math.log(1e-4), tuple((token, math.log(0.1)) for token in range(10, 19)))
    assert partial_kl(teacher, student) > 1.0


class Model:
    """Finds one token likely at every position."""

    def __init__(self, favourite: int, *, error: Exception | None = None, prompt: tuple[int, ...] = PROMPT) -> None:
        self.favourite, self.error, self.prompt = favourite, error, prompt
        self.texts: list[tuple[int, ...]] = []

    async def prompt_ids(self, request: BackendRequest) -> tuple[int, ...]:
        return self.prompt

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        if self.error:
            raise self.error
        self.texts.append(tuple(token_ids))
        alternatives = ((self.favourite, math.log(0.9)), (0, math.log(0.05)))
        return Scored(tuple(TokenLogprob(each, math.log(0.01), alternatives) for each in token_ids[start:]))


class NoNumbers(Model):
    """Its weights are broken."""

    async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
        return Scored(tuple(TokenLogprob(each, math.nan, ((1, math.nan),)) for each in token_ids[start:]))


def outcome(revision: int, **changes) -> Outcome:
    backend = Backend(app=f"bot--r{revision}", model=f"m@{revision}", revision=revision, weight=0)
    return replace(Outcome(backend, 200, {0: ANSWER}, 0.1, 0.3, True), **changes)


def compared(
    stable: Model, canary: Model, *, answered: Outcome | None = None, teacher: Model | None = None, **changes
) -> Finding | None:
    judge = Judge(teacher or Model(7), {"bot--r1": stable, "bot--r2": canary}.__getitem__, "bot--r2")
    request = BackendRequest("POST", "/v1/completions", (), b"{}", "r")
    return asyncio.run(judge.compare(MirroredPair("bot", request, answered or outcome(1), outcome(2, **changes))))


def test_both_students_read_the_answer_that_the_client_got():
    stable, canary = Model(7), Model(8)
    finding = compared(stable, canary, duration_s=0.9)
    assert stable.texts == canary.texts == [(*PROMPT, *ANSWER)]
    assert (finding.stable_agreement, finding.canary_agreement) == (1.0, 0.0)
    assert finding.stable_divergence == pytest.approx(0, abs=1e-9)
    assert finding.canary_divergence > 1
    assert (finding.stable_latency_s, finding.canary_latency_s) == pytest.approx((0.1, 0.3))


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 500},
        {"status": 0, "complete": False, "error": "died"},
        {"status": 400},
        {"token_ids": {}},
        {"token_ids": {0: ()}},
        {"complete": False, "error": "late"},
        {"complete": False},
    ],
)
def test_what_the_other_answered_and_it_did_not_is_its_failure(changes):
    assert compared(Model(7), Model(7), **changes) == Finding(canary_failed=True)


@pytest.mark.parametrize("changes", [{"token_ids": {}}, {"token_ids": {0: ()}}, {"complete": False}, {"status": 400}])
@pytest.mark.parametrize("canary", [{"token_ids": {0: ()}}, {"complete": False}, {"status": 500}])
def test_what_the_other_did_not_answer_well_is_no_failure_of_the_canary(changes, canary):
    """A request for no tokens (`echo`, `max_tokens` 0), or a stream that ended with an error event."""
    assert compared(Model(7), Model(7), answered=outcome(1, **changes), **canary) is None


def test_a_canary_that_cannot_read_or_says_no_numbers_has_failed(caplog):
    assert compared(Model(7), Model(7, error=BackendFailed("died"))).canary_failed
    assert "request r: the canary could not read its answer: died" in caplog.text
    assert compared(Model(7), NoNumbers(7)).canary_failed


def test_a_teacher_or_a_stable_version_that_says_no_numbers_is_no_failure_of_the_canary(caplog):
    assert compared(Model(7), Model(7), teacher=NoNumbers(7)) is None
    assert "request r is not compared: the teacher or bot--r1 gave no numbers" in caplog.text
    assert compared(NoNumbers(7), Model(7)) is None
    assert compared(NoNumbers(7), NoNumbers(7)) is None


def test_what_says_nothing_of_the_canary_is_left_out():
    assert compared(Model(7), Model(7), status=429) is None
    assert compared(Model(7), Model(7, error=Overloaded("the queue is full"))) is None
    assert compared(Model(7, prompt=()), Model(7)) is None
    with pytest.raises(BackendFailed):
        compared(Model(7, error=BackendFailed("the stable one died")), Model(7))


def test_a_pair_of_another_canary_says_nothing_of_this_one():
    """Of one that was replaced while its answer was under way."""
    another = outcome(3).backend
    assert compared(Model(7), Model(7), backend=another, status=500) is None
    assert compared(Model(7), Model(7), backend=another) is None


async def test_a_version_that_does_not_answer_delays_a_pair_and_not_those_behind_it(caplog):
    class Hangs(Model):
        async def score(self, token_ids: Sequence[int], *, start: int = 1, top_k: int = 0) -> Scored:
            await asyncio.Event().wait()
            raise AssertionError("never set")

    stables: dict[str, Model] = {"bot--r1": Hangs(7), "bot--r2": Model(7)}
    judge = Judge(Model(7), stables.__getitem__, "bot--r2", at_once=1, within_s=0.01)
    request = BackendRequest("POST", "/v1/completions", (), b"{}", "the-slow-one")
    pair = MirroredPair("bot", request, outcome(1), outcome(2))
    assert await judge.compare(pair) is None
    assert "request the-slow-one is not compared: it took more than 0.01 s" in caplog.text
    stables["bot--r1"] = Model(7)
    async with asyncio.timeout(30):
        assert await judge.compare(pair) is not None


def test_means_are_over_positions():
    teacher = [TokenLogprob(1, -1.0, ((1, -1.0),)), TokenLogprob(2, -1.0, ((2, -1.0),))]
    student = [TokenLogprob(1, -1.0, ((1, -1.0),)), TokenLogprob(2, -1.5, ((3, -1.0),))]
    assert agreement(teacher, student) == 0.5
    assert mean_divergence(teacher, student) > 0


probabilities = st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3).map(
    lambda weights: dict(zip("abc", [weight / sum(weights) for weight in weights], strict=True))
)


@given(probabilities, probabilities)
def test_labels_diverge_by_the_divergence_of_their_probabilities(teacher, student):
    found = label_divergence(teacher, student, exclusive=True)
    expected = sum(p * math.log(p / student[label]) for label, p in teacher.items())
    assert found == pytest.approx(max(expected, 0), abs=1e-9)
    assert label_divergence(teacher, teacher, exclusive=True) == pytest.approx(0, abs=1e-12)
    alone = label_divergence(teacher, student, exclusive=False)
    assert alone >= found - 1e-9, "what stands alone says of each label whether it is true or not"


def test_labels_agree_where_both_would_choose_the_same():
    assert label_agreement({"a": 0.6, "b": 0.4}, {"a": 0.9, "b": 0.1}, exclusive=True) == 1
    assert label_agreement({"a": 0.6, "b": 0.4}, {"a": 0.1, "b": 0.9}, exclusive=True) == 0
    assert label_agreement({"a": 0.6, "b": 0.4}, {"a": 0.9, "b": 0.9}, exclusive=False) == 0.5


def test_a_label_that_a_student_does_not_know_is_far_away():
    assert 2 < label_divergence({"a": 0.9, "b": 0.1}, {"b": 1.0}, exclusive=True) < math.inf


class Classifier:
    """Finds these labels likely in every text."""

    def __init__(self, *texts: dict[str, float], error: Exception | None = None) -> None:
        self.texts, self.error = texts, error

    async def labels(self, request: BackendRequest) -> Labels:
        if self.error:
            raise self.error
        return Labels(self.texts, exclusive=True)


SURE, UNSURE, OTHER = {"a": 0.9, "b": 0.1}, {"a": 0.6, "b": 0.4}, {"a": 0.1, "b": 0.9}


def classified(canary: Classifier, *, teacher: Classifier | None = None, **changes) -> Finding | None:
    stable = Classifier(SURE, UNSURE)
    judge = Judge(teacher or Classifier(SURE, SURE), {"bot--r1": stable, "bot--r2": canary}.__getitem__, "bot--r2")
    request = BackendRequest("POST", "/v1/classify", (), b"{}", "r")
    asked = [outcome(number, token_ids={}, **(changes if number == 2 else {})) for number in (1, 2)]
    return asyncio.run(judge.compare(MirroredPair("bot", request, *asked)))


def test_of_a_model_that_classifies_the_labels_are_compared():
    finding = classified(Classifier(SURE, OTHER), duration_s=0.9)
    assert (finding.stable_agreement, finding.canary_agreement) == (1.0, 0.5)
    assert finding.stable_divergence == pytest.approx(label_divergence(SURE, UNSURE, exclusive=True) / 2)
    assert finding.canary_divergence == pytest.approx(label_divergence(SURE, OTHER, exclusive=True) / 2)
    assert (finding.stable_latency_s, finding.canary_latency_s) == (0.3, 0.9)


@pytest.mark.parametrize("changes", [{"status": 500}, {"status": 0, "complete": False}])
def test_labels_that_the_other_gave_and_it_did_not_are_its_failure(changes):
    assert classified(Classifier(SURE, SURE), **changes) == Finding(canary_failed=True)


def test_a_classifier_that_breaks_has_failed_and_a_busy_one_has_not():
    assert classified(Classifier(error=BackendFailed("died"))) == Finding(canary_failed=True)
    assert classified(Classifier(error=Overloaded("full"))) is None
    assert classified(Classifier(SURE, SURE), status=429) is None
    with pytest.raises(BackendFailed):
        classified(Classifier(SURE, SURE), teacher=Classifier(error=BackendFailed("died")))
