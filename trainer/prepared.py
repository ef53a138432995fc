"""What a job learns from and is evaluated on, as it lies on disk: read by every worker, made by `prepare.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from trainer.errors import TrainerError
from trainer.job import JobContext
from trainer.samples import Prompts, Samples
from trainer.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Prepared:
    """What a job learns from and is evaluated on, read from disk when it is asked for."""

    ctx: JobContext
    record: dict[str, Any]

    @classmethod
    def open(cls, ctx: JobContext) -> Prepared:
        path = ctx.prepared_dir / "done.json"
        if not path.is_file():
            raise TrainerError("NOT_PREPARED", f"{ctx.prepared_dir} is not there yet; prepare the job first")
        return cls(ctx, json.loads(path.read_text()))

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.ctx.tokenizer_dir)

    @cached_property
    def train(self) -> Samples:
        """What the student learns; with seq_kd it is there after `finish_labels`."""
        if not (self.ctx.prepared_dir / "train").is_dir():
            raise TrainerError("LABELS_MISSING", "the teacher has not written the completions yet")
        return Samples(self.ctx.prepared_dir / "train")

    @cached_property
    def baseline(self) -> Samples:
        """What the baseline learns: labels of the data."""
        return Samples(self.ctx.prepared_dir / "baseline")

    @cached_property
    def eval(self) -> Samples:
        """Evaluation samples with completions, for perplexity; empty without `data.eval`."""
        return Samples(self.ctx.prepared_dir / "eval")

    @cached_property
    def prompts(self) -> Prompts:
        """Training prompts that the teacher is to complete (seq_kd), else empty."""
        return Prompts(self.ctx.prepared_dir / "prompts")

    @cached_property
    def eval_prompts(self) -> Prompts:
        """Evaluation prompts with reference answers; empty for format `text`."""
        return Prompts(self.ctx.prepared_dir / "eval_prompts")

    def samples(self, role: str) -> Samples:
        """What a learner ("student", "baseline") learns from."""
        return self.baseline if role == "baseline" else self.train

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """For train, eval, baseline: rows, samples, cut, dropped."""
        counts: dict[str, dict[str, int]] = self.record["counts"]
        return counts

    @property
    def data_fingerprint(self) -> dict[str, str]:
        """For train, eval, baseline: sha256 over the source rows used."""
        fingerprint: dict[str, str] = self.record["data_fingerprint"]
        return fingerprint

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)
