"""The rows that share the model, and the step that brings all of them on (Orca, OSDI '22: requests join and leave
between steps; Sarathi-Serve, arXiv 2403.02310: prompts are computed in parts, beside the next tokens of the others).

Rows that decode stand first, in one block; behind them stand those whose prompt is not done, in any order, and a step
brings to their head those that it computes: the oldest.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serving.batching import policy
from serving.batching.line import Line
from serving.batching.policy import Limits
from serving.batching.prefixes import BLOCK, PrefixPool
from serving.batching.runner import Runner
from serving.batching.streams import Outbox
from serving.batching.work import Generation, Scoring, Work, failed
from serving.engine import EndReason, Load, Observer
from serving.sampling import CannotChoose, Chosen, choose

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stepped:
    """What one step did."""

    prefilled: int = 0
    """Tokens of prompts."""
    decoded: int = 0
    """Rows that got a token."""


class Batch:
    """Used by one thread, but for the counts in `load`."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        line: Line,
        prefixes: PrefixPool,
        *,
        num_tokens: int,
        observer: Observer,
    ) -> None:
        self._runner = runner
        self._limits = limits
        self._line = line
        self._num_tokens = num_tokens
        self._observer = observer
        self._prefixes = prefixes
        self._rows: list[Work] = []
        self._decoding = 0
        self._reserved = 0
        self._outbox = Outbox()
        self._ran = self._broke = False
        self.failures = 0
        """Steps in a row in which the model or anything else broke; steps that ran nothing do not count."""
        self.unclean = False
        """What broken requests left behind could not be taken away."""

    @property
    def busy(self) -> bool:
        return bool(self._rows) or self._line.occupied

    @property
    def reads(self) -> bool:
        """There are rows whose prompts are not done."""
        return len(self._rows) > self._decoding

    @property
    def load(self) -> Load:
        """Without the prefixes."""
        return Load(len(self._rows), len(self._line), self._reserved, self._limits.row_tokens)

    @torch.inference_mode()
    def let_in(self) -> None:
        """Whoever is over leaves, and everybody who may comes in."""
        self._let_go(time.monotonic())
        self._admit()

    @torch.inference_mode()
    def step(self, prefill_tokens: int) -> Stepped:
        """Prompts come on by a part; everybody else gets one token."""
        self._ran = self._broke = False
        self._drop_ended()
        parts, decoded = self._parts(prefill_tokens), self._decoding
        self._bring_on([*[1] * decoded, *parts])
        self._drop_ended()
        self._outbox.send()
        if self._broke or self._ran:
            self.failures = self.failures + 1 if self._broke else 0
        return Stepped(sum(parts), decoded)

    @torch.inference_mode()
    def fail_all(self, waiting: Sequence[Work] = ()) -> None:
        """Nothing of what is here can be finished. First of all its clients are told: what follows may break too."""
        self.failures += 1
        gone, self._rows = self._rows, []
        self._decoding = self._reserved = 0
        for work in (*gone, *waiting):
            work.fail(self._outbox, failed())
        self._outbox.send()
        for work in (*gone, *waiting):
            self._report_end(work)
        self._prefixes.clear()
        self._clean(len(gone))

    def _clean(self, rows: int) -> None:
        try:
            for row in range(rows):
                self._runner.clear(row)
                self._runner.release(row)
        except Exception:  # the process boundary of a broken step: a device that is lost cannot be cleaned
            logger.exception("the rows of a broken step cannot be cleared")
            self.unclean = True

    def _let_go(self, now: float) -> None:
        """Whoever is done, has gone or is late leaves; the last rows move up to where they stood."""
        for work in self._line.leave(lambda work: _is_over(work, self._outbox, now)):
            self._report_end(work)
        for work in self._rows:
            work.check(self._outbox, now)
        self._drop_ended()

    def _drop_ended(self) -> None:
        """From the last row to the first: so those that end together leave without being moved."""
        for row in range(len(self._rows) - 1, -1, -1):
            if self._rows[row].ended is not None:
                work = self._rows[row]
                self._remove(row)
                self._report_end(work)
        self._reserved = sum(work.reserved for work in self._rows)

    def _admit(self) -> None:
        reserved = [work.reserved for work in self._rows]
        fresh = self._line.take(
            lambda waiting: policy.admit(reserved, (work.reserved for work in waiting), self._limits)
        )
        self._rows += fresh
        self._reserved = sum(work.reserved for work in self._rows)
        if fresh:
            self._runner.reserve(len(self._rows), max(work.reserved for work in self._rows))
        for row, work in enumerate(fresh, len(self._rows) - len(fresh)):
            self._attempt(work, lambda work=work: work.begin(self._outbox))  # type: ignore[misc]
            self._reuse(row, work)
            self._observer.admitted(time.monotonic() - work.submitted, len(work.tokens), work.computed)

    def _reuse(self, row: int, work: Work) -> None:
        """Begin where another prompt that began alike has been already."""
        if self._runner.splits_prompts and work.computed == 0 and (found := self._prefixes.find(work.names)):
            prefix, work.computed = found
            self._runner.fill(row, prefix.segment, work.computed)

    def _parts(self, most: int) -> list[int]:
        """Tokens of the prompts that come on: those of the oldest, whose rows are brought behind those that decode."""
        for row, work in enumerate(self._rows[self._decoding :], self._decoding):
            self._reuse(row, work)
        waiting = sorted(self._rows[self._decoding :], key=lambda work: work.submitted)
        remaining = [work.remaining for work in waiting]
        sizes = policy.prefill(remaining, most) if self._runner.splits_prompts else remaining[:1]
        for row, work in enumerate(waiting[: len(sizes)], self._decoding):
            self._swap(row, self._rows.index(work))
        return sizes

    def _bring_on(self, sizes: Sequence[int]) -> None:
        """The first rows by so many tokens each. Where the model breaks, prompts and answers are tried apart."""
        decoding = self._decoding
        is_mixed = 0 < decoding < len(sizes)
        if is_mixed and self._runner.splits_prompts and self._run(0, sizes, is_last=False):
            return
        if is_mixed:
            self._run(decoding, sizes[decoding:])
            self._run(0, sizes[:decoding])
        elif sizes:
            self._run(0, sizes)

    def _run(self, first: int, sizes: Sequence[int], *, is_last: bool = True) -> bool:
        """The model on the next tokens of some rows, and what follows from that for each.

        If it breaks they fail, and the others go on; False where it broke and another try is to come.
        """
        rows = self._rows[first : first + len(sizes)]
        keep = [work.logits_wanted(size) for work, size in zip(rows, sizes, strict=True)]
        for work in rows:
            work.sound = False
        try:
            logits_NV = self._runner.run(
                first,
                [work.next(size) for work, size in zip(rows, sizes, strict=True)],
                [work.computed for work in rows],
                keep,
            )
        except Exception:  # the process boundary of these requests: logged, and the others go on
            logger.exception("the model broke on %s", ", ".join(work.name for work in rows))
            if is_last:
                self._broke = True
                for work in rows:
                    work.fail(self._outbox, failed())
            return False
        for work, size in zip(rows, sizes, strict=True):
            work.computed += size
        self._ran = True
        self._read(first, rows, keep, logits_NV[:, : self._num_tokens])
        return True

    def _read(self, first: int, rows: Sequence[Work], keep: Sequence[int], logits_NV: Tensor) -> None:
        """Scores are taken down; whoever has come to the end of what is given gets a token, and decodes from now on."""
        last, chosen = [], []
        for row, (work, count, end) in enumerate(zip(rows, keep, itertools.accumulate(keep), strict=True), first):
            if isinstance(work, Scoring):
                work.read(self._outbox, logits_NV[end - count : end])
            elif isinstance(work, Generation) and not work.remaining:
                last.append(end - 1)
                chosen.append((row, work))
        if chosen:
            self._choose(logits_NV if len(last) == len(logits_NV) else logits_NV[last], [work for _, work in chosen])
        begun = [(row, work) for row, work in chosen if row >= self._decoding]
        for row, work in begun:
            self._remember(row, work)
        for row, _ in begun:
            self._swap(self._decoding, row)
            self._decoding += 1

    def _remember(self, row: int, work: Work) -> None:
        """Keep the beginning of a prompt that came before."""
        if work.sound and self._runner.splits_prompts and (count := self._prefixes.worth_keeping(work.names)):
            self._prefixes.keep(work.names[:count], self._runner.read(row, count * BLOCK))

    def _choose(self, logits_BV: Tensor, rows: Sequence[Generation]) -> None:
        now, since_last = time.monotonic(), []
        for work, chosen in zip(rows, choose(logits_BV, [each.chooser for each in rows]), strict=True):
            self._take(work, chosen)
            if work.last_token is None:
                self._observer.first_token(now - work.submitted)
            else:
                since_last.append(now - work.last_token)
            work.last_token = now
        self._observer.inter_token(since_last)

    def _take(self, work: Generation, chosen: Chosen | CannotChoose) -> None:
        if isinstance(chosen, CannotChoose):
            logger.error("request %s: %s", work.name, chosen, exc_info=chosen.__cause__)
            work.fail(self._outbox, failed())
        else:
            work.sound = True
            self._attempt(work, lambda: work.take(self._outbox, chosen))

    def _attempt(self, work: Work, act: Callable[[], None]) -> None:
        """What a request brings along, a guide say, may break: then it fails, and it alone."""
        try:
            act()
        except Exception:  # the process boundary of one request: logged, and the others go on
            logger.exception("request %s broke", work.name)
            work.fail(self._outbox, failed())

    def _remove(self, row: int) -> None:
        """The hole is filled from the end of its block, and the hole that this leaves from the end of all."""
        if not self._rows[row].sound:
            self._runner.clear(row)
        if row < self._decoding:
            self._decoding -= 1
            self._move(self._decoding, row)
            row = self._decoding
        self._move(len(self._rows) - 1, row)
        self._rows.pop()
        self._runner.release(len(self._rows))

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self._runner.swap(one, other, max(self._rows[one].computed, self._rows[other].computed))
            self._rows[one], self._rows[other] = self._rows[other], self._rows[one]

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._runner.move(source, target, self._rows[source].computed)
            if not self._rows[source].sound:
                self._runner.clear(source)
            self._rows[target] = self._rows[source]

    def _report_end(self, work: Work) -> None:
        if work.ended is not None and isinstance(work, Generation):
            self._observer.finished(work.ended, work.num_output, time.monotonic() - work.submitted)


def _is_over(work: Work, outbox: Outbox, now: float) -> bool:
    work.check(outbox, now)
    return work.ended is not None


class Unobserved:
    """Nobody counts."""

    def admitted(self, queued_s: float, prompt_tokens: int, reused_tokens: int) -> None: ...

    def first_token(self, since_submitted_s: float) -> None: ...

    def inter_token(self, since_last_s: Sequence[float]) -> None: ...

    def finished(self, reason: EndReason, output_tokens: int, since_submitted_s: float) -> None: ...

    def stepped(self, load: Load, prefilled_tokens: int, decoded_rows: int, step_s: float) -> None: ...
