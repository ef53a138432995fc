"""The quickstart's data: a support desk whose questions come from a seeded grammar and whose answers carry the intent.

An intent is a need about a topic; a phrasing is one way to say the need with one name of the topic. A quarter of the
phrasings is kept for evaluation and never trained on, though their words are met in other phrasings. Loads no torch.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path

from cluster.quickstart import phrases

HELD_OUT_SHARE = 0.25
SEED = 7


@dataclass(frozen=True, order=True)
class Phrasing:
    """One way to ask: `template` holds {x} for the thing; a verb phrase where `framed`."""

    topic: str
    need: str
    template: str
    thing: str
    framed: bool

    @property
    def intent(self) -> str:
        return f"{self.topic}.{self.need}"

    @property
    def answer(self) -> str:
        """The one right answer of the intent."""
        return phrases.ANSWERS[self.need].format(topic=self.topic, page=phrases.PAGES[self.topic])


@dataclass(frozen=True)
class Question:
    """What a customer wrote, and the phrasing it came from."""

    text: str
    phrasing: Phrasing


@dataclass(frozen=True)
class Sizes:
    """Questions in each part of the data."""

    labelled: int = 2500
    """With answers: the teacher learns from them."""
    unlabelled: int = 4000
    """Without: the teacher answers them, the student learns from that."""
    few: int = 144
    """With answers: all that the student would have without a teacher."""
    evaluation: int = 480
    """With answers, of phrasings that nobody trained on."""


@dataclass(frozen=True)
class Desk:
    """The parts. No question is in two of them."""

    labelled: tuple[Question, ...]
    unlabelled: tuple[Question, ...]
    few: tuple[Question, ...]
    evaluation: tuple[Question, ...]


def all_phrasings() -> list[Phrasing]:
    """Every need said about every name of every topic."""
    return [
        Phrasing(topic, need, template, thing, framed=group == 0)
        for (topic, things), (need, groups) in product(phrases.TOPICS.items(), phrases.NEEDS.items())
        for group, templates in enumerate(groups)
        for template, thing in product(templates, things)
    ]


def split_phrasings(seed: int = SEED) -> tuple[list[Phrasing], list[Phrasing]]:
    """To train on, and held out: of each intent the same share."""
    training: list[Phrasing] = []
    held_out: list[Phrasing] = []
    for members in _by_intent(all_phrasings()).values():
        shuffled = random.Random(f"{seed} {members[0].intent}").sample(members, len(members))
        num_held_out = round(len(members) * HELD_OUT_SHARE)
        held_out += shuffled[:num_held_out]
        training += shuffled[num_held_out:]
    return training, held_out


def make_desk(sizes: Sizes, seed: int = SEED) -> Desk:
    """All parts, the same for the same sizes and seed; every intent equally often (give or take one)."""
    training, held_out = split_phrasings(seed)
    seen: set[str] = set()
    return Desk(
        labelled=_draw(training, sizes.labelled, f"{seed} labelled", seen),
        unlabelled=_draw(training, sizes.unlabelled, f"{seed} unlabelled", seen),
        few=_draw(training, sizes.few, f"{seed} few", seen),
        evaluation=_draw(held_out, sizes.evaluation, f"{seed} evaluation", seen),
    )


def write_desk(desk: Desk, directory: Path) -> None:
    """Write each part to `<part>.jsonl` as chat rows; an unlabelled row has the user's turn only."""
    directory.mkdir(parents=True, exist_ok=True)
    for part in fields(Desk):
        row = _without_answer if part.name == "unlabelled" else _with_answer
        _write(directory / f"{part.name}.jsonl", map(row, getattr(desk, part.name)))


def _by_intent(members: Iterable[Phrasing]) -> dict[str, list[Phrasing]]:
    groups: dict[str, list[Phrasing]] = {}
    for member in members:
        groups.setdefault(member.intent, []).append(member)
    return groups


def _draw(members: Sequence[Phrasing], count: int, seed: str, seen: set[str]) -> tuple[Question, ...]:
    """`count` questions of which none is in `seen`, which grows by them."""
    rng = random.Random(seed)
    questions = list(islice(_fresh(members, rng, seen), count))
    rng.shuffle(questions)
    return tuple(questions)


def _fresh(members: Sequence[Phrasing], rng: random.Random, seen: set[str]) -> Iterator[Question]:
    """Intent after intent, and within an intent phrasing after phrasing, so that all of them come up."""
    groups = [cycle(rng.sample(group, len(group))) for group in _by_intent(members).values()]
    for group in cycle(groups):
        question = next(one for one in map(partial(_ask, rng=rng), group) if one.text not in seen)
        seen.add(question.text)
        yield question


def _ask(phrasing: Phrasing, rng: random.Random) -> Question:
    return Question(_say(phrasing, rng), phrasing)


def _say(phrasing: Phrasing, rng: random.Random) -> str:
    """The phrasing as somebody types it: framed, dressed up, now and then with a slip of the finger."""
    thing = f"{rng.choice(phrases.DETERMINERS)} {phrasing.thing}"
    if rng.random() < 0.25:
        thing += f" {rng.choice(phrases.DETAILS).format(n=rng.randrange(100, 1000))}"
    said = phrasing.template.format(x=thing)
    if phrasing.framed:
        said = rng.choice(phrases.FRAMES).format(v=said)
    parts = [
        rng.choice(phrases.GREETINGS) if rng.random() < 0.3 else "",
        rng.choice(phrases.OPENINGS) if rng.random() < 0.2 else "",
        said,
        rng.choice(phrases.THANKS) if rng.random() < 0.3 else "",
    ]
    text = " ".join(part for part in parts if part)
    return _mistype(text, rng) if rng.random() < 0.15 else text


def _mistype(text: str, rng: random.Random) -> str:
    """One slip inside one word: two letters swapped, one lost, one doubled, or one beside it."""
    places = [index for index in range(1, len(text) - 1) if text[index - 1 : index + 2].isalpha()]
    at = rng.choice(places)
    slips = (
        text[at + 1] + text[at],
        text[at + 1],
        text[at] * 2 + text[at + 1],
        rng.choice(string.ascii_lowercase) + text[at + 1],
    )
    return text[:at] + rng.choice(slips) + text[at + 2 :]


def _with_answer(question: Question) -> dict[str, object]:
    answer = {"role": "assistant", "content": question.phrasing.answer}
    return {"messages": [{"role": "user", "content": question.text}, answer]}


def _without_answer(question: Question) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question.text}]}


def _write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
