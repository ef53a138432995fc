"""The control plane's own costs beside Ray's Jobs REST API: making jobs durable, listing, watching, starting.

One machine runs everything: a Ray head, the control plane (SQLite with full sync, tokens and audit on) and the callers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.control.load import manifest
from benchmarks.measure import Spread, machine, medians_and_spread, ratios, run_side, save, versions
from cluster.client import AthanorClient
from cluster.process import end
from cluster.ray_head import RayHead, free_ports, start_head

CLIENTS = (1, 16, 64)
CALLS = {1: 300, 16: 960, 64: 1920}
RAY_CALLS = {1: 12, 16: 16, 64: 64}
STORED = (1_000, 10_000, 100_000)
WATCHERS = 1_000
_SERVE = "from cluster.server import serve; from cluster.settings import Settings; serve(Settings.from_env())"


@dataclass(frozen=True)
class Plane:
    """A control plane that runs, on a store with so many jobs."""

    address: str
    home: Path
    log: Path

    @property
    def token_file(self) -> Path:
        return self.home / "admin-token"

    def load(self, what: str, num: int, count: int) -> dict[str, Any]:
        train = str(self.home / "train.jsonl")
        module = "benchmarks.control.load"
        return run_side(module, self.address, str(self.token_file), train, what, str(num), str(count), log=self.log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line of stdout")
    parser.add_argument("--save", action="store_true", help="also under benchmarks/results/")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--stored", type=int, nargs="*", default=STORED, help="jobs in the store when it is listed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ath-") as directory:
        found = measure(Path(directory), chosen.repetitions, chosen.stored)
    document = {"benchmark": "control_plane", "n": chosen.repetitions} | medians_and_spread(found)
    document |= {"machine": machine(), "versions": versions("ray", "grpcio", "sqlalchemy")}
    if chosen.save:
        print(save("control_plane", document), file=sys.stderr)
    _print_table(document)
    if chosen.json:
        print(json.dumps(document))


def measure(root: Path, repetitions: int, stored: tuple[int, ...]) -> dict[str, Any]:
    with ray_head(root) as head:
        create = _creating(root, head, repetitions)
        start = _starting(root, head, repetitions)
    history = {str(count): _with_history(root, count, repetitions) for count in stored}
    ours = {"create": create["ours"], "start": start["ours"], "stored": history}
    few, many = (history[str(count)]["list"]["newest"]["p99_ms"] for count in (min(stored), max(stored)))
    ratio = {
        "create_rate_to_ray": create["ratio"]["1"],
        "create_rate_to_ray_16": create["ratio"]["16"],
        "create_rate_to_ray_64": create["ratio"]["64"],
        "create_p99_to_p50": create["p99_to_p50"],
        "list_p99_100k_to_1k": many["median"] / few["median"],
        "start_to_ray": start["ratio"],
    }
    return {"ours": ours, "ray": {"submit": create["ray"], "start": start["ray"]}, "ratio": ratio}


def _creating(root: Path, head: RayHead, repetitions: int) -> dict[str, Any]:
    """Both sides in turn, so that drift of the machine hits both."""
    ours: dict[str, list[Any]] = {str(each): [] for each in CLIENTS}
    ray: dict[str, list[Any]] = {str(each): [] for each in CLIENTS}
    with plane(root / "create", head.dashboard_url, Path(head.token_path)) as server:
        for _ in range(repetitions):
            for clients in CLIENTS:
                ours[str(clients)].append(server.load("create", clients, CALLS[clients]))
                ray[str(clients)].append(_ray(root, head, "submit", clients, RAY_CALLS[clients]))
    rates = {each: ratios(_field(ours[each], "rate"), _field(ray[each], "rate")).document() for each in ours}
    tails = [one["p99_ms"] / one["p50_ms"] for one in ours["1"]]
    return {
        "ours": {each: _spreads(runs) for each, runs in ours.items()},
        "ray": {each: _spreads(runs) for each, runs in ray.items()},
        "ratio": rates,
        "p99_to_p50": Spread.of(tails).document(),
    }


def _starting(root: Path, head: RayHead, repetitions: int) -> dict[str, Any]:
    """From the call that makes a job until its driver's first word; from a bare submission until Ray says RUNNING."""
    ours, bare = [], []
    with plane(root / "start", head.dashboard_url, Path(head.token_path)) as server:
        for _ in range(repetitions):
            ours.append(_start_once(server))
            bare.append(_ray(root, head, "start", 1, 1)["p50_ms"] / 1e3)
    return {
        "ours": {"seconds": Spread.of(ours).document()},
        "ray": {"seconds": Spread.of(bare).document()},
        "ratio": ratios(ours, bare).document(),
    }


def _start_once(server: Plane) -> float:
    document = manifest(str(server.home / "train.jsonl"), "start", priority=500)
    with AthanorClient(server.address, token=server.token_file.read_text().strip()) as client:
        began = time.perf_counter()
        uid = client.create_job(document).uid
        for change in client.follow_job(uid, timeout_s=120):
            if change.job.HasField("start_time"):
                break
        taken = time.perf_counter() - began
        client.cancel_job(uid)
        client.wait_job(uid, timeout_s=120)
    return taken


def _with_history(root: Path, count: int, repetitions: int) -> dict[str, Any]:
    """No Ray is needed: what is stored only waits."""
    home = root / f"stored-{count}"
    home.mkdir()
    run_side("benchmarks.control.fill", f"sqlite:///{home / 'athanor.db'}", str(count), log=root / "log")
    with plane(home, "http://127.0.0.1:9", None) as server:
        lists = [server.load("list", 100, 50) for _ in range(repetitions)]
        creates = [server.load("create", 1, 200) for _ in range(repetitions)]
        watches = [server.load("watch", each, 10) for each in (1, WATCHERS)]
    return {
        "list": {name: _spreads([one[name] for one in lists]) for name in lists[0]},
        "create": _spreads(creates),
        "watch": {"1": watches[0], str(WATCHERS): watches[1]},
    }


@contextlib.contextmanager
def ray_head(root: Path) -> Iterator[RayHead]:
    head = start_head(root / "ray", num_cpus=8, log_path=root / "ray.log", token_path=root / "token")
    try:
        yield head
    finally:
        end(head.process)


@contextlib.contextmanager
def plane(home: Path, dashboard_url: str, ray_token: Path | None) -> Iterator[Plane]:
    """A control plane of its own on this home while the block lasts."""
    home.mkdir(exist_ok=True)
    (home / "train.jsonl").write_text('{"prompt": "hello", "completion": "world"}\n')
    address = f"127.0.0.1:{free_ports(1)[0]}"
    known = {"ATHANOR_HOME": str(home), "ATHANOR_LISTEN": address, "ATHANOR_RAY_DASHBOARD_URL": dashboard_url}
    known |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(ray_token)} if ray_token else {}
    known |= {"ATHANOR_CALLS_PER_SECOND": "1000000", "ATHANOR_MAX_STREAMS": str(4 * WATCHERS), "DS_ACCELERATOR": "cpu"}
    log = home / "server.log"
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, "-c", _SERVE], env={**os.environ, **known}, stdout=out, stderr=out)
    try:
        with AthanorClient(address) as client:
            while not client.is_serving():
                if process.poll() is not None:
                    raise SystemExit(log.read_text()[-2000:])
                time.sleep(0.05)
        yield Plane(address, home, home / "load.log")
    finally:
        process.terminate()
        process.wait(30)


def _ray(root: Path, head: RayHead, what: str, clients: int, count: int) -> dict[str, Any]:
    arguments = (head.dashboard_url, str(head.token_path), what, str(clients), str(count))
    return run_side("benchmarks.control.ray_rest", *arguments, log=root / "log")


def _field(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(run[name]) for run in runs]


def _spreads(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {name: Spread.of(_field(runs, name)).document() for name in runs[0]}


def _print_table(document: Mapping[str, Any]) -> None:
    for clients in map(str, CLIENTS):
        ours, ray = document["ours"]["create"][clients], document["ray"]["submit"][clients]
        of_ours = f"ours {ours['rate']:7.0f}/s  p50 {ours['p50_ms']:7.2f} ms  p99 {ours['p99_ms']:7.2f} ms"
        of_rays = f"Ray {ray['rate']:6.1f}/s  p50 {ray['p50_ms']:7.2f} ms"
        print(f"{clients:>3} callers  {of_ours}   {of_rays}", file=sys.stderr)
    print(json.dumps(document["ratio"], indent=1), file=sys.stderr)


if __name__ == "__main__":
    main()
