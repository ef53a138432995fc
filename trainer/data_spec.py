"""`data:` of a job file: what is learned from, and which column plays which part. Loads no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.fields import Strict


class ColumnsSpec(Strict):
    """Which column of the data plays which part."""

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"
    teacher_key: Annotated[str, Field(min_length=1)] | None = None
    """Column that names the teacher of each training sample; without it every teacher answers every sample."""

    def without_teachers(self) -> ColumnsSpec:
        """For data that nobody teaches: evaluation, baseline."""
        return self.model_copy(update={"teacher_key": None})


class DataSpec(Strict):
    """What is learned from."""

    train: str
    """A .jsonl, .csv or .parquet file, or a hub id (org/name)."""
    eval: str | None = None
    """The same for evaluation; never trained on."""
    format: Literal["chat", "prompt_completion", "text"] = "chat"
    columns: ColumnsSpec = ColumnsSpec()
    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 512
    """Tokens; a longer sample is cut at its end, and the number of cut samples is said."""
    packing_strategy: Literal["none", "bfd", "wrapped"] = "none"
    """Several samples in one row, attention and positions apart: `bfd` packs whole ones by best-fit decreasing;
    `wrapped` fills rows to exactly `max_length` (a multiple of 8 leaves no padding) and cuts samples at their ends,
    which costs one target for each cut and the context before it."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Take only so many training samples, drawn by `training.seed`."""
