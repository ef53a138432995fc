"""The job file, and its only definition: types, bounds, defaults, words for people. Loads no torch.

`parse_manifest` reads what people write, `JobManifest` is what everything else is given. Unknown keys are errors,
with the key that was probably meant. Nothing here is changed after validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from trainer.data_spec import ColumnsSpec as ColumnsSpec
from trainer.data_spec import DataSpec as DataSpec
from trainer.errors import SpecError as SpecError
from trainer.errors import Violation as Violation
from trainer.fields import NAME_PATTERN as NAME_PATTERN
from trainer.fields import Duration, JobUid, ModelReference, SecretReference, Strict
from trainer.objective_spec import LAYERED
from trainer.objective_spec import MatchSpec as MatchSpec
from trainer.objective_spec import ObjectiveSpec as ObjectiveSpec
from trainer.objective_spec import TeacherSpec as TeacherSpec
from trainer.secrets import misplaced
from trainer.training_spec import TrainingSpec as TrainingSpec
from trainer.violations import did_you_mean, violations

API_VERSION = "athanor/v1"


class TokenizerSpec(Strict):
    """A byte-level BPE tokenizer trained on the job's training data."""

    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 2048
    """Entries, special tokens included."""


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

    @property
    def baseline_settings(self) -> BaselineSpec | None:
        """None where no baseline is asked for."""
        return self.baseline if isinstance(self.baseline, BaselineSpec) else BaselineSpec() if self.baseline else None


class PublishSpec(Strict):
    model: Annotated[str, Field(pattern=NAME_PATTERN)]
    """Name in the registry."""
    alias: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Alias to point at the new version."""


class RetriesSpec(Strict):
    infrastructure: Annotated[int, Field(ge=0, le=1000)] = 5
    """Attempts after machinery was lost; lost workers are started again twice before that counts."""
    user: Annotated[int, Field(ge=0, le=1000)] = 0
    """Attempts after the job itself was wrong."""
    preemption: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How often it makes room for a job of higher priority; without it as often as it is asked to."""


class ScheduleSpec(Strict):
    priority: Annotated[int, Field(ge=0, le=1000)] = 500
    max_run_duration: Duration | None = None
    """The job is failed after this long in RUNNING. One that says so may be let in before a larger job."""
    hold_until: AwareDatetime | None = None
    """It waits at least until then (RFC 3339, with a time zone)."""
    depends_on: Annotated[tuple[JobUid, ...], Field(max_length=64)] = ()
    """Uids of jobs that must have succeeded before it begins; it fails with the first of them that does not. A model
    that one of them publishes may be named by its alias before it is there: the job gets the version that comes."""
    retries: RetriesSpec = RetriesSpec()


class HubSpec(Strict):
    """The model hub, as far as this job needs a name there."""

    token: SecretReference | None = None
    """`${secret:NAME}`: read where the job runs, from the file NAME in ATHANOR_SECRETS_DIR or the variable
    ATHANOR_SECRET_NAME; stored and shown as it stands here. For models and data that are not public."""


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
    hub: HubSpec = HubSpec()

    @model_validator(mode="before")
    @classmethod
    def _secrets_stand_where_they_are_read(cls, fields: object) -> object:
        place = next((path for path in misplaced(fields) if path != ("hub", "token")), None)
        if place is not None:
            name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
            raise ValueError(f"{name}: a secret is taken in hub.token only; leave it out here")
        return fields

    @model_validator(mode="after")
    def _teachers_are_there_to_be_named(self) -> FineTuneSpec:
        if self.data.columns.teacher_key is not None and not isinstance(self, DistillSpec):
            raise ValueError("data.columns.teacher_key: a FineTune has no teachers; leave it out, or use kind: Distill")
        return self

    @property
    def has_written_labels(self) -> bool:
        """Whether a teacher writes the completions that the student learns (seq_kd)."""
        return False


class DistillSpec(FineTuneSpec):
    """Learn from a teacher."""

    teachers: Annotated[tuple[TeacherSpec, ...], Field(min_length=1, max_length=16)]
    """All answer every sample (`objective.kd_loss_mode`), or each its own (`data.columns.teacher_key`)."""
    objective: ObjectiveSpec = ObjectiveSpec()

    @property
    def has_written_labels(self) -> bool:
        return self.objective.seq_kd

    @model_validator(mode="after")
    def _tokenizer_is_the_teachers(self) -> DistillSpec:
        if self.student.tokenizer is not None:
            raise ValueError("student.tokenizer: a distilled student takes its teacher's tokenizer; leave this out")
        return self

    @model_validator(mode="after")
    def _labels_need_prompts(self) -> DistillSpec:
        if self.objective.seq_kd and self.data.format == "text":
            raise ValueError(
                "objective.seq_kd: data.format text has no prompts to complete; use chat or prompt_completion"
            )
        return self

    @model_validator(mode="after")
    def _teachers_are_told_apart(self) -> DistillSpec:
        names = self.teacher_names
        if len(set(names)) < len(names):
            raise ValueError(f"teachers: names must differ, these do not: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _inner_values_are_kept(self) -> DistillSpec:
        layered = [match.feature for match in self.objective.intermediate_matches if match.feature in LAYERED]
        if self.training.gradient_checkpointing and layered:
            raise ValueError(
                f"training.gradient_checkpointing: throws away the inner values of layers that {layered[0]} in "
                "objective.intermediate_matches reads; leave one of the two out"
            )
        return self

    @model_validator(mode="after")
    def _everyone_is_asked(self) -> DistillSpec:
        """Nobody is loaded for nothing, and the same model is not set up in two ways."""
        if self.objective.kd_ratio == 0.0 and (len(self.teachers) > 1 or self.data.columns.teacher_key is not None):
            raise ValueError(
                "objective.kd_ratio: 0 asks only the first teacher (for labels and inner values); raise it, or name "
                "one teacher and no data.columns.teacher_key"
            )
        seen: dict[tuple[str, str], tuple[int, TeacherSpec]] = {}
        for at, teacher in enumerate(self.teachers):
            first, same = seen.setdefault((teacher.model, teacher.dtype), (at, teacher))
            for field in ("shards", "replicas", "answer_timeout"):
                if getattr(teacher, field) != getattr(same, field):
                    raise ValueError(
                        f"teachers[{at}].{field}: is the same model as teachers[{first}] and loaded once, but this "
                        "differs; give both the same"
                    )
        return self

    @model_validator(mode="after")
    def _several_are_joined(self) -> DistillSpec:
        """Modes and shares mean something only among teachers that answer together."""
        mode, alone = self.objective.kd_loss_mode, len(self.teachers) == 1
        if alone and mode != "sum":
            raise ValueError(f"objective.kd_loss_mode: {mode} joins several teachers, but one is named; leave this out")
        weighted = [at for at, teacher in enumerate(self.teachers) if teacher.weight != 1.0]
        reasons = {
            "there is no other teacher": alone,
            "data.columns.teacher_key gives each sample one teacher": self.data.columns.teacher_key is not None,
            "objective.kd_loss_mode select_teacher takes one of them at each position": mode == "select_teacher",
        }
        why = next((reason for reason, holds in reasons.items() if holds), None)
        if weighted and why is not None:
            rule = f"is a share of teachers that answer together, but {why}; leave this out"
            raise ValueError(f"teachers[{weighted[0]}].weight: {rule}")
        return self

    @model_validator(mode="after")
    def _routing_is_possible(self) -> DistillSpec:
        """Where each sample has its own teacher, nothing may ask for all of them, or for the first."""
        if self.data.columns.teacher_key is None:
            return self
        rule = "data.columns.teacher_key gives each sample one teacher; leave one of the two out"
        if self.objective.kd_loss_mode != "sum":
            raise ValueError(f"objective.kd_loss_mode: {self.objective.kd_loss_mode} joins teachers, but {rule}")
        if self.objective.intermediate_matches:
            raise ValueError(f"objective.intermediate_matches: reads the first teacher for every sample, but {rule}")
        if self.objective.seq_kd:
            raise ValueError(f"objective.seq_kd: the first teacher writes all completions, but {rule}")
        return self

    @model_validator(mode="after")
    def _samples_of_a_step_are_together(self) -> DistillSpec:
        if not self.objective.compares_samples:
            return self
        workers, batch_tokens = self.resources.student.workers, self.training.batch_tokens
        share = batch_tokens if workers == 1 else -(-batch_tokens // workers) + self.data.max_length + 8
        if self.training.micro_batch_tokens < share:
            raise ValueError(
                "training.micro_batch_tokens: rkd_distance and rkd_angle compare all samples of a step, so each worker "
                f"must hold its share at once; raise it to {share}, or lower batch_tokens"
            )
        return self

    @property
    def teacher_names(self) -> tuple[str, ...]:
        return tuple(teacher.name or f"teacher-{at}" for at, teacher in enumerate(self.teachers))


KINDS: dict[str, type[FineTuneSpec]] = {"FineTune": FineTuneSpec, "Distill": DistillSpec}


class Metadata(Strict):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    project: Annotated[str, Field(pattern=NAME_PATTERN)] = "default"
    """Whose job it is: quotas and tokens are by project."""
    labels: dict[str, str] = Field(default_factory=dict)


class JobManifest(Strict):
    """A whole job file, validated."""

    api_version: Literal["athanor/v1"] = Field(alias="apiVersion")
    kind: Literal["FineTune", "Distill"]
    metadata: Metadata
    spec: DistillSpec | FineTuneSpec


def parse_manifest(document: Mapping[str, object]) -> JobManifest:
    """A job file as read from YAML or JSON; SpecError lists every wrong field, all in one go."""
    if not isinstance(document, Mapping):
        raise SpecError([Violation("", f"a job file is a block of keys, not {type(document).__name__}")])
    fields, found = dict(document), list[Violation]()
    if fields.get("kind") in list(KINDS) and "spec" in fields:
        try:
            fields["spec"] = parse_spec(str(fields["kind"]), fields["spec"])
        except SpecError as error:
            found.extend(error.violations)
    try:
        manifest = JobManifest.model_validate(fields)
    except ValidationError as error:
        outside = [one for one in violations(error, JobManifest) if "spec" not in fields or one.path[:4] != "spec"]
        raise SpecError([*outside, *found]) from None
    if found:
        raise SpecError(found)
    return manifest


def parse_spec(kind: str, spec: object) -> FineTuneSpec | DistillSpec:
    """The `spec` part of a job of this kind; the paths of its SpecError begin with `spec.` as in the job file."""
    if kind not in KINDS:
        raise SpecError(
            [Violation("kind", f"{kind!r} is not one of {', '.join(KINDS)}{did_you_mean(kind, list(KINDS))}")]
        )
    try:
        return KINDS[kind].model_validate(spec)
    except ValidationError as error:
        raise SpecError(violations(error, KINDS[kind], prefix="spec")) from None


def job_schema() -> dict[str, Any]:
    """JSON Schema of a job file."""
    return JobManifest.model_json_schema(by_alias=True)
