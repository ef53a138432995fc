"""The list of files in the README: one line for each module, in the order in which a run meets them.

The words are the first sentence of each module's docstring, so that they cannot grow old. A module that nobody has put
in an order yet comes last in its group.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Group:
    """A heading, the folders whose modules stand under it, and those that come first, in their order."""

    title: str
    folders: tuple[str, ...]
    first: str = ""


GROUPS = (
    Group(
        "The job file and the command",
        ("cluster/cli", "cluster/client"),
        """
        trainer/spec.py trainer/objective_spec.py trainer/training_spec.py trainer/fields.py trainer/violations.py
        cluster/cli/main.py cluster/cli/job.py cluster/cli/job_follow.py cluster/cli/job_read.py
        cluster/cli/job_change.py cluster/cli/describe.py cluster/cli/advice.py
        cluster/cli/job_file.py cluster/cli/connect.py cluster/client/__init__.py
        cluster/client/call.py cluster/client/job_calls.py cluster/client/streams.py cluster/client/blocking.py
        cluster/client/handle.py cluster/channel.py cluster/rpc.py
        """,
    ),
    Group(
        "The control plane: from a stored job to a Ray job",
        ("cluster", "cluster/services", "cluster/security"),
        """
        cluster/settings.py cluster/server.py cluster/services/jobs.py cluster/services/submission.py
        cluster/lifecycle.py cluster/reconciler.py cluster/admission.py cluster/scheduler.py cluster/capacity.py
        cluster/demands.py cluster/standings.py cluster/policy.py cluster/changes.py
        cluster/launcher.py cluster/attempt_files.py cluster/services/workers.py cluster/registry.py
        cluster/deployment_reconciler.py cluster/deployer.py
        """,
    ),
    Group(
        "Who may do what",
        ("cluster/security",),
        """
        cluster/services/interceptor.py cluster/security/policies.py cluster/security/caller.py
        cluster/security/tokens.py cluster/security/audit.py cluster/access.py cluster/channel.py
        """,
    ),
    Group(
        "The store",
        ("cluster/store",),
        """
        cluster/store/store.py cluster/store/records.py cluster/store/tables.py cluster/store/deployment_tables.py
        """,
    ),
    Group(
        "One attempt on Ray",
        ("cluster/driver",),
        """
        cluster/driver/__main__.py cluster/driver/supervise.py cluster/driver/attempt.py
        cluster/driver/reporting.py cluster/driver/student_group.py cluster/driver/teacher_plan.py
        cluster/driver/teacher_group.py
        cluster/driver/teacher_dispatch.py cluster/driver/teacher_shard.py cluster/driver/remote_teacher.py
        """,
    ),
    Group(
        "Learning",
        ("trainer",),
        """
        trainer/job.py trainer/preflight.py trainer/stages.py trainer/prepare.py trainer/prepared.py trainer/sources.py
        trainer/data.py trainer/samples.py trainer/render.py trainer/tokenizer.py trainer/order.py trainer/packing.py
        trainer/batch.py trainer/models.py trainer/teacher.py trainer/sharded_loading.py trainer/generate.py
        trainer/labels.py
        trainer/fit.py trainer/teaching.py trainer/faculty.py trainer/payload.py trainer/wanted.py trainer/loop.py
        trainer/feed.py trainer/learner.py trainer/objective.py trainer/losses.py trainer/head.py trainer/answers.py
        trainer/divergences.py trainer/layers.py trainer/matches.py trainer/taps.py trainer/imitation.py
        trainer/attention.py trainer/engine.py
        trainer/schedule.py trainer/checkpoint.py trainer/peers.py
        trainer/listener.py trainer/evaluate.py trainer/bootstrap.py trainer/transfer.py trainer/report.py
        trainer/wording.py trainer/pictures.py trainer/page.py
        """,
    ),
    Group(
        "Serving",
        ("serving",),
        """
        serving/app.py serving/openai_api.py serving/schemas.py serving/engine.py serving/prompts.py
        serving/batching/engine.py serving/batching/lanes.py serving/batching/batch.py serving/batching/policy.py
        serving/batching/line.py serving/batching/work.py serving/batching/runner.py serving/batching/attention.py
        serving/batching/cache.py serving/batching/prefixes.py serving/batching/streams.py serving/sampling.py
        serving/detokenizer.py
        serving/answers.py serving/loading.py serving/pooling.py serving/vllm_engine.py serving/model_dir.py
        """,
    ),
    Group(
        "The quickstart and the cluster of one machine",
        ("cluster/quickstart",),
        """
        cluster/cli/quickstart.py cluster/quickstart/run.py
        cluster/quickstart/support_desk.py cluster/local.py cluster/ray_head.py cluster/process.py cluster/home.py
        cluster/doctor.py
        """,
    ),
)


def reading_list(root: Path) -> str:
    """The groups as Markdown; every module once."""
    named = {name for group in GROUPS for name in group.first.split()}
    return "\n".join(_section(root, group, named) for group in GROUPS)


def _section(root: Path, group: Group, named: set[str]) -> str:
    first = [name for name in group.first.split() if (root / name).is_file()]
    found = [
        path.relative_to(root).as_posix() for folder in group.folders for path in sorted((root / folder).glob("*.py"))
    ]
    rest = [name for name in found if name not in named and not name.endswith("__init__.py")]
    lines = [f"- `{name}`: {_first_sentence(root / name)}" for name in [*first, *rest]]
    return "\n".join([f"**{group.title}**", "", *lines, ""])


def _first_sentence(path: Path) -> str:
    words = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].split())
    return words.split(". ")[0].rstrip(".")
