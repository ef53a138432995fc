"""The figures of a run, one JSON line per logged step: what the report draws and people watch."""

from __future__ import annotations

from trainer.step_log import StepLog


class MetricsLog(StepLog):
    """`metrics.jsonl`, of the first worker."""
