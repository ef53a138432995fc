"""docs/client.md: its examples run as they stand there, and its table names every method."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from pathlib import Path
from typing import Any

from athanor.v1 import worker_service_pb2
from control_plane import ControlPlane

from cluster.client import AthanorClient

PAGE = (Path(__file__).parents[3] / "docs" / "client.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


async def finish_next(plane: ControlPlane) -> None:
    """Be the driver of the one job that comes, and end it well."""
    uid = ""
    async with asyncio.timeout(60):
        while not uid:
            listed = await plane.jobs.ListJobs(list_request())
            uid = next((job.uid for job in listed.jobs if not job.end_time.seconds), "")
        ref = await plane.running(uid)
        await plane.finish(ref, worker_service_pb2.OUTCOME_SUCCEEDED, message="learned")


def list_request() -> Any:
    from athanor.v1 import job_service_pb2

    return job_service_pb2.ListJobsRequest()


async def test_the_examples_run(plane: ControlPlane) -> None:
    train = plane.settings.home / "train.jsonl"
    train.write_text('{"prompt": "hello", "completion": "world"}\n')
    names: dict[str, Any] = {"address": plane.address, "token": plane.token, "train_file": str(train)}
    said = io.StringIO()

    def first_example() -> None:
        with contextlib.redirect_stdout(said):
            exec(compile(EXAMPLES[0], "docs/client.md", "exec"), names)

    await asyncio.gather(asyncio.to_thread(first_example), finish_next(plane))
    assert "SUCCEEDED learned" in said.getvalue()
    assert said.getvalue().splitlines()[-1].startswith("bot-")
    exec(compile(EXAMPLES[1], "docs/client.md", "exec"), names)
    state, _ = await asyncio.gather(names["run"](plane.address, plane.token, names["manifest"]), finish_next(plane))
    assert state == "SUCCEEDED"


def test_the_table_names_every_method() -> None:
    told = set(re.findall(r"`([a-z_]+)`", PAGE[PAGE.index("## Methods") :]))
    methods = {name for name in dir(AthanorClient) if name[0] != "_"} - {"close", "ask", "walk", "read"}
    assert told == methods
