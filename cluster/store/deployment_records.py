"""Deployments as the store gives and takes them: frozen values. What becomes of them is decided in rollout.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]


class DeploymentState(StrEnum):
    """The names of `athanor.v1.DeploymentState` without the prefix."""

    PENDING = "PENDING"
    DEPLOYING = "DEPLOYING"
    READY = "READY"
    FAILED = "FAILED"
    DELETING = "DELETING"


class Phase(StrEnum):
    """The names of `athanor.v1.RevisionPhase` without the prefix, in the order in which they are gone through."""

    STARTING = "STARTING"
    CANARY = "CANARY"
    LIVE = "LIVE"
    DRAINING = "DRAINING"
    GONE = "GONE"


@dataclass(frozen=True)
class Autoscaling:
    """Replicas by load."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float = 8.0
    scale_up_delay_s: float = 30.0
    scale_down_delay_s: float = 600.0


@dataclass(frozen=True)
class Engine:
    """By what models are run, and what it may use; the limits are those of `serving.options`."""

    name: str = "transformers"
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """What a canary must show; the limits are those of `athanor.v1.CanaryGate`."""

    teacher: str = ""
    """Reference; empty: the first teacher of the canary's model."""
    mirror_share: float = 1.0
    error_budget: float = 0.05
    max_divergence_increase: float = 0.1
    max_agreement_loss: float = 0.05
    max_latency_ratio: float = 1.5
    max_error_rate: float = 0.05
    min_observations: int = 30
    max_duration_s: float = 24 * 3600.0
    task_data: str = ""
    """Path of labelled examples; empty: none."""
    max_task_loss: float = 0.05
    steps: tuple[int, ...] = ()
    """Basis points of the requests: so its share grows."""
    step_requests: int = 50


@dataclass(frozen=True)
class Trial:
    """The judgement of one canary: by what, against whom, and what was seen."""

    gate: Gate
    teacher: str
    """`name@version`."""
    teacher_path: str
    token: str
    """Secret of this canary's judge; good for reporting what it saw, and for nothing else."""
    task_sha256: str = ""
    """Of the file of labelled examples, where the control plane could read it: its judge then takes no other."""
    live_at_step: int = 0
    """Requests of its own users that it had when its share last grew."""
    evidence: Json = field(default_factory=dict)
    """State of the tests, see canary.py."""


@dataclass(frozen=True)
class Revision:
    """One model version with its resources, as a deployment has or had it."""

    number: int
    model: str
    """`name@version`."""
    path: str
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    phase: Phase = Phase.STARTING
    is_canary: bool = False
    weight: int = 0
    """Basis points of the requests: of a canary, as wished; of a live one, all that the canary does not take."""
    mirror_share: float = 0.0
    trial: Trial | None = None
    engine: Engine | None = None
    """None: the default one, with its own limits."""
    was_live: bool = False
    """Whether it ever answered all requests: then one may go back to it."""
    message: str = ""
    create_time_us: int = 0
    phase_time_us: int = 0
    unrouted_time_us: int = 0
    """When the gateway was first seen to go by a table without it; 0: not yet. From then on it drains."""

    @property
    def is_up(self) -> bool:
        """Whether Serve shall have it."""
        return self.phase is not Phase.GONE


@dataclass(frozen=True)
class StoredDeployment:
    """What shall be served, and how far it is. `resolved_model` and `path` are those of the version that answers."""

    name: str
    model: str
    resolved_model: str
    path: str
    num_replicas: int
    cpus_per_replica: float
    gpus_per_replica: float
    state: DeploymentState
    message: str
    create_time_us: int
    update_time_us: int
    endpoint: str = ""
    project: str = "default"
    creator: str = ""
    follow_alias: bool = False
    followed: str = ""
    """The version that the alias pointed at when it was last looked at: only a move of it begins something."""
    is_untried: bool = False
    """Whether `followed` never came because the gate could not judge it: another gate is another look at the alias."""
    autoscaling: Autoscaling | None = None
    gate: Gate | None = None
    engine: Engine | None = None
    generation: int = 1
    """Counts what was changed of it by people or by a decision, not what was seen."""
    observed_generation: int = 0
    """The newest one that Serve was seen to go by, or to give up; 0: none yet."""
    revisions: tuple[Revision, ...] = ()
    """Oldest first."""

    @property
    def live(self) -> Revision | None:
        return self._newest(Phase.LIVE)

    @property
    def canary(self) -> Revision | None:
        """The canary that is up, or on its way."""
        return next((each for each in self.coming if each.is_canary), None)

    @property
    def coming(self) -> tuple[Revision, ...]:
        """Those that may answer all requests one day."""
        return tuple(each for each in self.revisions if each.phase in (Phase.STARTING, Phase.CANARY))

    @property
    def newest(self) -> Revision:
        return self.revisions[-1]

    def _newest(self, phase: Phase) -> Revision | None:
        return next((each for each in reversed(self.revisions) if each.phase is phase), None)


@dataclass(frozen=True)
class Decision:
    """Something that was decided about a deployment, before it is stored."""

    reason: str
    message: str
    revision: int = 0
    actor: str = ""
    figures: Json = field(default_factory=dict)


@dataclass(frozen=True)
class StoredDecision:
    """A decision at its place in the history."""

    number: int
    deployment: str
    create_time_us: int
    decision: Decision
