"""Every method against every other on BANKING77: one job for each method and seed, and a table of what they kept.

    python examples/banking77/methods.py --train train.csv --test test.csv

Needs a control plane (`athanor up`) and the teacher of teacher.yaml. May be stopped and run again at any time: a job
that was submitted before is found by its request id, and a finished one is not run twice. `--again 1` runs them anew.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from athanor.v1 import job_pb2
from google.protobuf import json_format

from cluster.cli.connect import connect
from cluster.client import AthanorClient

METHODS: dict[str, dict[str, Any]] = {
    "alone": {"kd_ratio": 0.0},
    "forward_kl": {"divergence": "forward_kl"},
    "reverse_kl": {"divergence": "reverse_kl"},
    "jsd": {"divergence": "jsd"},
    "skewed_forward_kl": {"divergence": "skewed_forward_kl"},
    "skewed_reverse_kl": {"divergence": "skewed_reverse_kl"},
    "adaptive_kl": {"divergence": "adaptive_kl"},
    "tvd": {"divergence": "tvd"},
    "taid": {"divergence": "taid"},
    "forward_kl, top 16": {"teacher_payload": "topk_logits", "loss_top_k": 16},
    "hidden": {"kd_ratio": 0.0, "intermediate_matches": [{"feature": "hidden", "layer_mapping": "uniform"}]},
    "attention": {"kd_ratio": 0.0, "intermediate_matches": [{"feature": "attention", "layer_mapping": "uniform"}]},
    "value_relation": {"kd_ratio": 0.0, "intermediate_matches": [{"feature": "value_relation"}]},
    "token_similarity": {"kd_ratio": 0.0, "intermediate_matches": [{"feature": "token_similarity"}]},
    "rkd": {"kd_ratio": 0.0, "intermediate_matches": [{"feature": "rkd_distance"}, {"feature": "rkd_angle"}]},
    "forward_kl + hidden": {"intermediate_matches": [{"feature": "hidden", "layer_mapping": "uniform"}]},
}
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Two-sided 95 % quantiles of Student's t by degrees of freedom."""


@dataclass(frozen=True)
class Result:
    """What one job's report says."""

    method: str
    seed: int
    student: float
    teacher: float
    perplexity: float


def manifest_of(base: Mapping[str, Any], method: str, seed: int, train: Path, test: Path) -> dict[str, Any]:
    """The job file of one method and seed."""
    document = copy.deepcopy(dict(base))
    spec = document["spec"]
    spec["objective"] = {**spec["objective"], **METHODS[method]}
    spec["training"]["seed"] = seed
    spec["data"] |= {"train": str(train.resolve()), "eval": str(test.resolve())}
    return document


def run(client: AthanorClient, manifest: Mapping[str, Any], method: str, seed: int, again: int) -> Result | None:
    """Submits the job, or finds it, and waits; None when it did not succeed."""
    teacher = client.get_model(manifest["spec"]["teachers"][0]["model"])
    asked = json.dumps([manifest, teacher.version, again], sort_keys=True)
    job = client.create_job(manifest, request_id=f"banking77-{hashlib.sha256(asked.encode()).hexdigest()[:32]}")
    print(f"{method}, seed {seed}: {job.uid}", file=sys.stderr)
    job = client.wait_job(job.uid)
    if job.state != job_pb2.JOB_STATE_SUCCEEDED:
        print(f"{method}, seed {seed}: {job_pb2.JobState.Name(job.state)} {job.message}", file=sys.stderr)
        return None
    found = json_format.MessageToDict(job.summary)
    student, teacher = found["student"], found["teacher"]
    return Result(method, seed, student["exact_match"], teacher["exact_match"], student["perplexity"])


def table(results: list[Result]) -> Iterator[str]:
    """Markdown: the mean over seeds with its 95 % interval, and the share of the teacher's exact match."""
    yield "| method | seeds | exact match | 95 % interval | of the teacher's | perplexity |"
    yield "|---|---|---|---|---|---|"
    if results:
        teacher = results[0].teacher
        yield f"| *teacher* | | {teacher:.1%} | | | |"
    for method in METHODS:
        mine = [result for result in results if result.method == method]
        if mine:
            yield row(method, mine)


def row(method: str, mine: list[Result]) -> str:
    values = [result.student for result in mine]
    mean, shown = statistics.fmean(values), "–"
    if len(values) > 1:
        half = T_95[min(4, len(values) - 1)] * statistics.stdev(values) / len(values) ** 0.5
        shown = f"{mean - half:.1%} to {mean + half:.1%}"
    perplexity = statistics.fmean(result.perplexity for result in mine)
    return f"| {method} | {len(mine)} | {mean:.1%} | {shown} | {mean / mine[0].teacher:.1%} | {perplexity:.3f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="CSV with the columns text and category")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--again", type=int, default=0, metavar="N", help="another N runs all jobs anew, after failures"
    )
    parser.add_argument("--address", default="", help="host:port of the control plane")
    chosen = parser.parse_args()
    base = yaml.safe_load(Path(__file__).with_name("method.yaml").read_text())
    results: list[Result] = []
    with connect(chosen.address) as client:
        for seed in chosen.seeds:
            for method in chosen.methods:
                manifest = manifest_of(base, method, seed, chosen.train, chosen.test)
                result = run(client, manifest, method, seed, chosen.again)
                results += [result] if result else []
    print("\n".join(table(results)))
    return 0 if len(results) == len(chosen.seeds) * len(chosen.methods) else 1


if __name__ == "__main__":
    sys.exit(main())
