"""The dashboard of serving asks for what gateways, replicas and control planes count: for all of it, nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml
from fake_backends import Scripted

from cluster.metrics import Metrics
from cluster.settings import Settings
from serving.gateway_metrics import GatewayMetrics
from serving.mirroring import Mirroring
from serving.replica_metrics import ReplicaMetrics

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD = DOCS / "grafana-serving.json"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def families():
    gateway = GatewayMetrics("g-1")
    gateway.counts_left_out(Mirroring(Scripted(), None))
    canaries = [each for each in Metrics().registry.collect() if each.name.startswith("athanor_canary")]
    return [*gateway.registry.collect(), *ReplicaMetrics("bot", "student@1", "r-1").figures(), *canaries]


def test_every_metric_is_there_and_every_one_that_is_there_is_shown():
    asked = set(re.findall(r"athanor_[a-z0-9_]+", DASHBOARD.read_text()))
    found = families()
    assert asked - {family.name + suffix for family in found for suffix in SUFFIXES[family.type]} == set()
    unseen = [family.name for family in found if not {family.name + each for each in SUFFIXES[family.type]} & asked]
    assert unseen == []


def test_labels_are_there_and_panels_do_not_overlap():
    document = json.loads(DASHBOARD.read_text())
    labels = {"deployment", "model", "replica", "code", "finished_reason", "decision", "le"}
    expressions = [target["expr"] for panel in document["panels"] for target in panel.get("targets", ())]
    used = {label for by in re.findall(r"by \(([a-z_, ]+)\)", " ".join(expressions)) for label in by.split(", ")}
    used |= set(re.findall(r"[{,]\s*([a-z_]+)=", " ".join(expressions)))
    assert used <= labels
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    cells = [
        (x, y)
        for panel in document["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))


def test_the_table_of_the_docs_names_every_metric():
    table = (DOCS / "serving-api.md").read_text().split("| metric | labels |", 1)[1].split("\n\n", 1)[0]
    named = set()
    for row in table.splitlines()[2:]:
        stem = ""
        for name in re.findall(r"`([a-z0-9_.]+)`", row.split("|")[1]):
            stem = (
                name[: name.index("_", 9) + 1] if not name.startswith("...") else stem
            )  # athanor_serve_, athanor_gateway_
            named.add(name.replace("..._", stem))
    there = {family.name + ("_total" if family.type == "counter" else "") for family in families()}
    assert named == {name for name in there if not name.startswith("athanor_canary")}


def test_what_prometheus_is_told_to_scrape_is_where_it_is():
    page = (DOCS / "operations.md").read_text()
    [told] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "scrape_configs" in block]
    jobs = {each["job_name"]: each for each in yaml.safe_load(told)["scrape_configs"]}
    [endpoint] = jobs["athanor-endpoint"]["static_configs"][0]["targets"]
    assert endpoint == f"127.0.0.1:{Settings().serve_port}"
    [control_plane] = jobs["athanor-control-plane"]["static_configs"][0]["targets"]
    assert f"ATHANOR_METRICS_LISTEN={control_plane}" in page
