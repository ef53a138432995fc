"""The job file, and its only definition: types, bounds, defaults, words for people. Loads no torch.

`parse_manifest` reads what people write, `JobManifest` is what everything else is given. Unknown keys are errors,
with the key that was probably meant. Nothing here is changed after validation.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

API_VERSION = "athanor/v1"
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,39}$"
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Strict(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _parse_duration(value: object) -> object:
    """`90s`, `15m`, `10h`, `2d`, or a number of seconds."""
    if isinstance(value, str) and (match := _DURATION.match(value.strip())):
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
    if isinstance(value, bool) or (isinstance(value, str) and not value.startswith("P")):
        raise ValueError("write a duration as a number and a unit of s, m, h or d, for example 10h")
    return value


def _write_duration(value: timedelta) -> str:
    return f"{value.total_seconds():g}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration, json_schema_input_type=str | float),
    PlainSerializer(_write_duration, return_type=str),
]


def _check_model_reference(value: str) -> str:
    """A path, a hub id, or `name@alias`: told apart by their form alone."""
    if not value.strip():
        raise ValueError("name a model: a directory, a hub id (org/name), or a registry reference (name@alias)")
    return value


ModelReference = Annotated[str, AfterValidator(_check_model_reference)]


class TokenizerSpec(Strict):
    """A byte-level BPE tokenizer trained on the job's training data."""

    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 2048
    """Entries, special tokens included."""


class FreshModel(Strict):
    """A model that begins from random weights."""

    config: dict[str, Any]
    """A transformers config: `model_type` and its fields. `vocab_size` and token ids are set from the tokenizer."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Used when no teacher brings a tokenizer."""

    @model_validator(mode="after")
    def _has_model_type(self) -> FreshModel:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("config.model_type is missing; name the architecture, for example model_type: llama")
        return self


class StudentSpec(Strict):
    """The model that learns: `model` names one that exists, `config` describes a fresh one."""

    model: ModelReference | None = None
    """Hub id, directory, or registry reference name@alias."""
    config: dict[str, Any] | None = None
    """Instead of `model`: a transformers config for random weights."""
    tokenizer: TokenizerSpec | None = None
    """With `config` and no teacher: the tokenizer to train on the data."""

    @model_validator(mode="after")
    def _one_of(self) -> StudentSpec:
        if (self.model is None) == (self.config is None):
            raise ValueError("give either model (an existing one) or config (a fresh one), not both and not neither")
        if self.model is not None and self.tokenizer is not None:
            raise ValueError("tokenizer goes with config only; an existing model brings its own")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config.model_type is missing; name the architecture, for example model_type: llama")
        return self


class TeacherSpec(Strict):
    """A model that teaches. It is only read."""

    model: ModelReference
    """Hub id, directory, or registry reference name@alias."""
    shards: Annotated[int, Field(ge=1, le=64)] = 1
    """Actors that share its parameters (DeepSpeed ZeRO-3 inference)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


class ColumnsSpec(Strict):
    """Which column of the data plays which part."""

    messages: str = "messages"
    prompt: str = "prompt"
    completion: str = "completion"
    text: str = "text"


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
    packing_strategy: Literal["none", "bfd"] = "none"
    """`bfd` packs several samples into one row by best-fit decreasing; attention and positions stay apart."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Take only so many training samples, drawn by `training.seed`."""


class ObjectiveSpec(Strict):
    """L = kd_ratio * temperature^2 * divergence(teacher, student) + (1 - kd_ratio) * cross-entropy."""

    divergence: Literal["forward_kl"] = "forward_kl"
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    kd_ratio: Annotated[float, Field(ge=0, le=1)] = 0.9
    teacher_payload: Literal["hidden_states"] = "hidden_states"
    """What travels from teacher to student for each unmasked position."""
    seq_kd: bool = False
    """Let the first teacher write the completions of the training prompts (sequence-level KD, arXiv 1606.07947)."""


class TrainingSpec(Strict):
    """How the student is optimised (AdamW)."""

    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps. Exactly one of max_steps and num_epochs."""
    num_epochs: Annotated[float, Field(gt=0)] | None = None
    batch_tokens: Annotated[int, Field(ge=1)] = 16384
    """Tokens of one optimizer step over all workers, padding included."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] = 8192
    """Tokens one worker holds at once; bounds memory, changes no result."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 3.0e-4
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.98
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps float32 master weights."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    """DeepSpeed ZeRO stage."""
    prefetch_depth: Annotated[int, Field(ge=0, le=64)] = 2
    """Teacher requests in flight ahead of the student; changes no result."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 7

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSpec:
        if (self.max_steps is None) == (self.num_epochs is None):
            raise ValueError("give exactly one of max_steps and num_epochs")
        return self


class StudentResources(Strict):
    """What each student worker reserves on Ray."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0


class TeacherResources(Strict):
    """What each teacher shard reserves on Ray."""

    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0


class ResourcesSpec(Strict):
    student: StudentResources = StudentResources()
    teacher: TeacherResources = TeacherResources()


class CheckpointSpec(Strict):
    every_steps: Annotated[int, Field(ge=1)] = 200
    keep: Annotated[int, Field(ge=1, le=100)] = 3


class BaselineSpec(Strict):
    """The student that learns without a teacher: what the transfer is measured against."""

    train: str | None = None
    """Labelled data; without it `data.train`, which must then carry completions."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Take only so many of them, drawn by `training.seed`."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; without it as many as the student's, so that both see as much compute."""


class EvaluateSpec(Strict):
    metrics: tuple[Literal["perplexity", "exact_match"], ...] = ("perplexity", "exact_match")
    baseline: bool | BaselineSpec = False
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = 64
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Evaluate on only so many samples, the first ones."""
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 2000


class PublishSpec(Strict):
    model: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Name in the registry."""
    alias: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Alias to point at the new version."""


class RetriesSpec(Strict):
    infrastructure: Annotated[int, Field(ge=0, le=1000)] = 5
    """Attempts after machinery was lost."""
    user: Annotated[int, Field(ge=0, le=1000)] = 0
    """Attempts after the job itself was wrong."""


class ScheduleSpec(Strict):
    priority: Annotated[int, Field(ge=0, le=1000)] = 500
    max_run_duration: Duration | None = None
    """The job is failed after this long in RUNNING."""
    retries: RetriesSpec = RetriesSpec()


class FineTuneSpec(Strict):
    """Learn from labels."""

    student: StudentSpec
    data: DataSpec
    training: TrainingSpec
    resources: ResourcesSpec = ResourcesSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    publish: PublishSpec | None = None
    schedule: ScheduleSpec = ScheduleSpec()


class DistillSpec(FineTuneSpec):
    """Learn from a teacher."""

    teachers: Annotated[tuple[TeacherSpec, ...], Field(min_length=1, max_length=1)]
    """One teacher, as of now."""
    objective: ObjectiveSpec = ObjectiveSpec()

    @model_validator(mode="after")
    def _tokenizer_is_the_teachers(self) -> DistillSpec:
        if self.student.tokenizer is not None:
            raise ValueError("student.tokenizer: a distilled student takes its teacher's tokenizer; leave this out")
        return self


KINDS: dict[str, type[FineTuneSpec]] = {"FineTune": FineTuneSpec, "Distill": DistillSpec}


class Metadata(Strict):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    labels: dict[str, str] = {}


class JobManifest(Strict):
    """A whole job file, validated."""

    api_version: Literal["athanor/v1"] = Field(alias="apiVersion")
    kind: Literal["FineTune", "Distill"]
    metadata: Metadata
    spec: DistillSpec | FineTuneSpec
