"""Both revisions are asked every example, and a replica that is busy or dies changes nobody's score."""

from __future__ import annotations

import asyncio

import pytest

from serving.errors import BackendFailed, DeadlineExceeded, EngineFailed, InvalidRequest, Overloaded, Unavailable
from serving.judge import Finding
from serving.task_data import Example
from serving.task_pass import examine

EXAMPLES = tuple(Example(({"role": "user", "content": str(number)},), f"answer {number}") for number in range(4))


class Revision:
    """Knows all answers but those to `wrong`; what is in `errors` comes first."""

    def __init__(self, *wrong: int, errors: tuple[Exception, ...] = ()) -> None:
        self.wrong, self.errors = wrong, list(errors)
        self.asked: list[str] = []

    async def answer(self, example: Example) -> str:
        self.asked.append(example.text)
        if self.errors:
            raise self.errors.pop(0)
        return "no idea" if int(example.text) in self.wrong else f" {example.reference}\n"


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr("serving.task_pass._PAUSE_S", 0)
    monkeypatch.setattr("serving.task_pass._EVERY_S", 0)


async def told(stable: Revision, canary: Revision, most: int = 100) -> list[Finding]:
    found = []

    async def tell(findings: list[Finding]) -> bool:
        found.extend(findings)
        return len(found) < most

    await examine(EXAMPLES, stable, canary, tell)
    return found


def rights(found: list[Finding]) -> list[tuple[bool, bool]]:
    return [(each.stable_right, each.canary_right) for each in found]


async def test_each_example_tells_who_was_right():
    found = await told(Revision(0), Revision(0, 2))
    assert rights(found) == [(False, False), (True, True), (True, False), (True, True)]
    assert [(each.kind, each.task_index, each.task_size) for each in found] == [("TASK", n, 4) for n in range(4)]


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("no replica"), DeadlineExceeded("late")])
async def test_who_is_busy_or_not_there_is_asked_again(error):
    canary, stable = (Revision(errors=(error,) * 5) for _ in range(2))
    assert rights(await told(stable, canary))[0] == (True, True)
    assert canary.asked[:6] == stable.asked[:6] == ["0"] * 6


async def test_a_canary_that_breaks_again_and_again_does_not_know_the_answer():
    found = rights(await told(Revision(), Revision(errors=(BackendFailed("died"),) * 3)))
    assert found == [(True, False), *[(True, True)] * 3]
    assert rights(await told(Revision(), Revision(errors=(BackendFailed("died"),) * 2)))[0] == (True, True)


async def test_an_example_that_breaks_the_stable_version_is_left_out(caplog):
    """And the others are told in a row: who counts them takes no other."""
    stable = Revision(errors=(EngineFailed("it broke"),) * 2)
    found = await told(stable, Revision(2))
    assert [(each.task_index, each.task_size) for each in found] == [(0, 4), (1, 4), (2, 4)]
    assert rights(found) == [(True, True), (True, False), (True, True)]
    assert stable.asked == ["0", "0", "1", "2", "3"]
    assert "1 of 4 labelled examples were left out" in caplog.text


async def test_a_stable_version_that_breaks_once_is_asked_again():
    assert rights(await told(Revision(errors=(BackendFailed("died"),)), Revision())) == [(True, True)] * 4


async def test_a_file_that_breaks_the_stable_version_does_not_cost_it_its_replica(caplog):
    """One that breaks 8 times in a row is taken for broken."""
    stable = Revision(errors=(EngineFailed("it broke"),) * 99)
    assert await told(stable, Revision()) == []
    assert stable.asked == ["0", "0", "1", "1", "2", "2"]
    assert "it is asked no more" in caplog.text


class Hangs(Revision):
    """Over the second example."""

    async def answer(self, example: Example) -> str:
        if example.text == "1":
            await asyncio.Event().wait()
        return await super().answer(example)


async def test_an_example_without_an_answer_holds_nobody_up(monkeypatch):
    monkeypatch.setattr("serving.task_pass._WITHIN_S", 0.01)
    assert len(await told(Hangs(), Revision())) == 3
    assert rights(await told(Revision(), Hangs())) == [(True, True), (True, False), (True, True), (True, True)]


async def test_what_cannot_be_asked_is_not_known():
    found = await told(Revision(errors=(InvalidRequest("too long"),)), Revision())
    assert rights(found)[0] == (False, True)


async def test_it_ends_when_nobody_wants_more():
    assert len(await told(Revision(), Revision(), most=2)) == 2


async def test_what_comes_quickly_is_told_together(monkeypatch):
    monkeypatch.setattr("serving.task_pass._EVERY_S", 3600)
    told_together = []

    async def tell(findings: list[Finding]) -> bool:
        told_together.append(len(findings))
        return True

    await examine(EXAMPLES, Revision(), Revision(), tell)
    assert told_together == [4]
