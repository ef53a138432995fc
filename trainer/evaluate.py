"""Evaluation of one model: what it answers to every question and how much every token surprises it, kept as JSON Lines.

The same code measures teacher, student and baseline, each through two functions of the `Teacher` protocol's shape.
Work is dealt out in rounds, and every rank calls as often as every other, with nothing where it has nothing: so it is
safe for models whose shards run in lockstep. Figures are made of the lines elsewhere (`transfer.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainer.atomic import write_text
from trainer.batch import Batch, Sample, collate, padded_length
from trainer.job import JobContext
from trainer.listener import Listener, Stopped
from trainer.peers import Peers
from trainer.prepared import Prepared
from trainer.samples import Prompt
from trainer.transfer import read_jsonl

Generate = Callable[[Sequence[Sequence[int]], int], list[list[int]]]
"""(prompts as token ids, most tokens to write) -> completions as token ids, without the end token."""
Score = Callable[[Batch], list[tuple[float, int]]]
"""For each of `batch.sample_ids`: summed negative log-likelihood (nats) and number of learned tokens."""

Line = dict[str, Any]
_GENERATION_SHARE = 4
"""Generation keeps no gradients and makes logits for one position only: so many times the tokens of a micro-batch."""


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluation data as the measures need it; prompts and samples are joined by their `sample_id`."""

    prompts: Sequence[Prompt]
    """For exact match; those without a reference are not asked."""
    samples: Sequence[Sample]
    """For perplexity."""
    decode: Callable[[Sequence[int]], str]
    """Token ids to text, special tokens left out."""
    pad_id: int

    @classmethod
    def of(cls, prepared: Prepared) -> EvaluationSet:
        decode = partial(prepared.tokenizer.decode, skip_special_tokens=True)
        return cls(prepared.eval_prompts, prepared.eval, decode, prepared.pad_id)

    def with_room(self, positions: int | None, longest: int) -> EvaluationSet:
        """Without the prompts that leave no room for an answer of `longest` tokens within `positions`."""
        if positions is None:
            return self
        return replace(self, prompts=[one for one in self.prompts if len(one.input_ids) + longest <= positions])


def is_exact_match(completion: str, reference: str) -> bool:
    """Equal, white space apart: stripped at both ends, and any run of it is one space."""
    return completion.split() == reference.split()


def evaluate(
    ctx: JobContext,
    role: str,
    samples: EvaluationSet,
    generate: Generate,
    score: Score,
    peers: Peers,
    listener: Listener,
) -> None:
    """Writes `evaluation/<role>.jsonl`, a line per sample in order of ids; collective; does nothing if it is there."""
    if peers.any(ctx.evaluation_path(role).is_file()):
        return
    rounds = _rounds(ctx, samples, generate, score, peers)
    lines: dict[int, Line] = {}
    for done, measure in enumerate(rounds, start=1):
        for line in measure():
            lines.setdefault(line["sample_id"], {}).update(line)
        if peers.is_first:
            listener.progress(f"evaluate {role}", done, len(rounds))
        if peers.any(listener.should_stop()):
            raise Stopped("STOPPED", f"asked to stop while {role} was examined; its examination begins anew")
    _write_lines(_part(ctx, role, peers.rank), lines)
    peers.barrier()
    if peers.is_first:
        _merge(ctx, role, peers.world)
    peers.barrier()


def _rounds(
    ctx: JobContext, data: EvaluationSet, generate: Generate, score: Score, peers: Peers
) -> list[Callable[[], list[Line]]]:
    """This rank's work for each round; the same number of rounds on every rank."""
    rounds: list[Callable[[], list[Line]]] = []
    settings, budget = ctx.spec.evaluate, ctx.spec.training.micro_batch_tokens
    if "exact_match" in settings.metrics:
        longest = settings.max_new_tokens
        asked = [prompt for prompt in data.prompts if prompt.reference is not None]
        lengths = [len(prompt.input_ids) + longest for prompt in asked]
        for mine in deal(batches(lengths, _GENERATION_SHARE * budget), peers):
            rounds.append(partial(_answer, [asked[index] for index in mine], generate, longest, data.decode))
    if "perplexity" in settings.metrics:
        samples = list(data.samples)
        lengths = [padded_length(len(sample["input_ids"])) for sample in samples]
        for mine in deal(batches(lengths, budget), peers):
            rounds.append(partial(_surprise, [samples[index] for index in mine], score, data.pad_id))
    return rounds


def batches(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Indices by falling length, cut into batches of at most `most_tokens` tokens once padded; never an empty one."""
    found: list[list[int]] = []
    rows = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if rows == 0:
            found.append([])
            rows = max(1, most_tokens // max(1, lengths[index]))
        found[-1].append(index)
        rows -= 1
    return found


def deal(everything: Sequence[list[int]], peers: Peers) -> list[list[int]]:
    """Every `world`-th batch for this rank; an empty one where the last round has none left for it."""
    num_rounds = -(-len(everything) // peers.world)
    mine = list(everything[peers.rank :: peers.world])
    return mine + [[] for _ in range(num_rounds - len(mine))]


def _answer(
    prompts: Sequence[Prompt], generate: Generate, longest: int, decode: Callable[[Sequence[int]], str]
) -> list[Line]:
    written = generate([prompt.input_ids for prompt in prompts], longest)
    return [_answer_line(prompt, decode(token_ids)) for prompt, token_ids in zip(prompts, written, strict=True)]


def _answer_line(prompt: Prompt, completion: str) -> Line:
    return {
        "sample_id": prompt.sample_id,
        "prompt": prompt.text,
        "reference": prompt.reference,
        "completion": completion,
        "exact_match": is_exact_match(completion, prompt.reference or ""),
    }


def _surprise(samples: Sequence[Sample], score: Score, pad_id: int) -> list[Line]:
    """One sample a row, so that the scores come in the order of the samples."""
    batch = collate([[index] for index in range(len(samples))], samples, pad_id)
    return [
        {"sample_id": sample_id, "nll": float(nll), "tokens": int(tokens)}
        for sample_id, (nll, tokens) in zip(batch.sample_ids, score(batch), strict=True)
    ]


def _part(ctx: JobContext, role: str, rank: int) -> Path:
    return ctx.evaluation_path(role).parent / "parts" / f"{role}-{rank}.jsonl"


def _merge(ctx: JobContext, role: str, world: int) -> None:
    """One file out of the ranks' parts, which are then removed."""
    parts = [_part(ctx, role, rank) for rank in range(world)]
    found: dict[int, Line] = {}
    for part in parts:
        for line in read_jsonl(part):
            found.setdefault(line["sample_id"], {}).update(line)
    _write_lines(ctx.evaluation_path(role), found)
    for part in parts:
        part.unlink()


def _write_lines(path: Path, lines: Mapping[int, Line]) -> None:
    write_text(path, "".join(json.dumps(lines[sample_id]) + "\n" for sample_id in sorted(lines)))
