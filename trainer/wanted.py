"""What passes between student and teacher beside tensors: what is wanted for every batch, and what a teacher is like.

Small values that travel with a question or come back once; equal ones have equal answers. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PayloadForm = Literal["hidden_states", "topk_logits", "full_logits"]
LAST_HIDDEN = "hidden:last"
"""The name of the final hidden states among the inner values."""


@dataclass(frozen=True)
class Wanted:
    """Shards in lockstep are all asked for the same."""

    payload: PayloadForm | None = "hidden_states"
    """None where only inner values are wanted."""
    top_k: int = 0
    temperature: float = 1.0
    """Of the softmax whose tail topk_logits sums up."""
    own_logits: bool = False
    """Logits as the model itself makes them, since its head alone does not."""
    taps: tuple[str, ...] = ()
    """Inner values by name: `hidden:3`, `scores:6`, `values:12`, `hidden:last`; layers count from 1."""


@dataclass(frozen=True)
class Shape:
    """What layers and widths are matched by."""

    hidden_size: int
    num_layers: int


@dataclass(frozen=True)
class TeacherFacts:
    """What a student's side must know before it asks."""

    shape: Shape
    num_tokens: int
    """Real entries of the vocabulary."""
    item_bytes: int
    """Of one number of a hidden state or a logit."""
    head_error: float
    """Largest difference between the head's logits and the model's own, as a share of the largest logit."""
    head_tolerance: float
    """What rounding alone explains in the model's dtype."""
    loaded_whole: str | None = None
    """Why every shard read the whole model before it was parted; None where each read its own share alone."""

    @property
    def has_plain_head(self) -> bool:
        """Whether its hidden states and its head say all."""
        return self.head_error <= self.head_tolerance
