"""Which samples one worker learned from, one JSON line per micro-batch: proof that none was lost and none came twice.

Asked for by `training.log_sample_ids`.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainer.step_log import StepLog


class SampleLog(StepLog):
    """`samples-<rank>.jsonl`; of several workers each has its own."""

    def add(self, step: int, place: int, sample_ids: Sequence[int]) -> None:
        """`step` counts from 1, as in the figures; `place` is the micro-batch within it. An idle worker has no ids."""
        self.write({"step": step, "place": place, "sample_ids": list(sample_ids)})
