"""A Ray for storms: the REST API that the launcher speaks, and drivers that speak the real contract, all in one thread.

Hundreds of jobs go through it in a minute, and it sees what no real Ray tells: whether two drivers of one job ever
lived at once. It can lose replies, lose requests, be away for a while, and forget everything as a new head does.
"""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from aiohttp import web
from athanor.v1 import job_pb2, worker_service_pb2, worker_service_pb2_grpc
from google.protobuf import json_format

STEP_S = 0.05
_ABSENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class SimRay:
    """Start it by `running()`. What a driver does is told by the beginning of its job's name, see `SimDriver`."""

    def __init__(self, seed: int, *, num_cpus: int = 16) -> None:
        self.violations: list[str] = []
        self.drivers: dict[str, SimDriver] = {}
        self.lost: list[SimDriver] = []
        """Drivers that no head knows any more."""
        self.num_started = 0
        self.num_told = 0
        """Reports of progress that drivers have sent."""
        self.num_heard = 0
        """Those that were answered."""
        self.loses = 0.0
        """Share of requests, and of replies, that get lost."""
        self.is_away = False
        self.url = ""
        self._random = random.Random(seed)
        self._num_cpus = num_cpus
        self._loop = asyncio.new_event_loop()

    @contextmanager
    def running(self) -> Iterator[SimRay]:
        thread = threading.Thread(target=self._loop.run_forever, name="sim-ray")
        thread.start()
        runner = self.do(self._serve())
        try:
            yield self
        finally:
            self.do(self._end(runner))
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the thread of this Ray."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def kill_driver(self) -> str:
        """SIGKILL to a driver that lives, if there is one: it says nothing more. Its id."""
        return str(self.do(self._kill_any()))

    def restart_head(self) -> None:
        """Everything on it dies, and the new head knows no job."""
        self.do(self._forget())

    def lose_head(self) -> None:
        """The new head knows no job, and the drivers live on."""
        self.do(self._lose())

    def kill_lost_driver(self) -> str:
        """SIGKILL to one that no head knows. Its job."""
        return str(self.do(self._kill_lost()))

    async def _serve(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._disturbances()])
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/v0/nodes", self._nodes),
                web.get("/api/v0/placement_groups", self._nothing),
                web.get("/api/v0/actors", self._nothing),
                web.get("/api/jobs/", self._list),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{id}", self._look),
                web.post("/api/jobs/{id}/stop", self._stop),
                web.get("/api/serve/applications/", self._applications),
                web.put("/api/serve/applications/", self._applications),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return runner

    async def _end(self, runner: web.AppRunner) -> None:
        await self._forget()
        await runner.cleanup()

    def _disturbances(self) -> Any:
        @web.middleware
        async def disturb(request: web.Request, handler: Any) -> web.StreamResponse:
            assert request.transport is not None
            if self.is_away or self._random.random() < self.loses:
                request.transport.abort()
                return web.Response()
            answer = await handler(request)
            if self._random.random() < self.loses and request.transport is not None:
                request.transport.abort()
            return answer

        return disturb

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"ray_version": "2.60.0"})

    async def _nodes(self, request: web.Request) -> web.Response:
        total = {"CPU": self._num_cpus}
        head = {"node_id": "head", "node_ip": "127.0.0.1", "state": "ALIVE", "is_head_node": True}
        rows = {"total": 1, "num_after_truncation": 1, "num_filtered": 1, "result": [head | {"resources_total": total}]}
        return web.json_response({"result": True, "msg": "", "data": {"result": rows}})

    async def _nothing(self, request: web.Request) -> web.Response:
        rows = {"total": 0, "num_after_truncation": 0, "num_filtered": 0, "result": []}
        return web.json_response({"result": True, "msg": "", "data": {"result": rows}})

    async def _applications(self, request: web.Request) -> web.Response:
        return web.json_response({"applications": {}})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([driver.as_document() for driver in self.drivers.values()])

    async def _look(self, request: web.Request) -> web.Response:
        driver = self.drivers.get(request.match_info["id"])
        if driver is None:
            return web.Response(status=404, text=f"Job {request.match_info['id']} does not exist")
        return web.json_response(driver.as_document())

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        ray_job_id = body["submission_id"]
        if ray_job_id in self.drivers:
            return web.Response(status=500, text=f"ValueError: Job with submission_id {ray_job_id} already exists.")
        uid = ray_job_id.rpartition("-")[0]
        living = [each.id for each in [*self.drivers.values(), *self.lost] if each.uid == uid and each.is_alive]
        if living:
            self.violations.append(f"{ray_job_id} was started while {living} lives")
        self.drivers[ray_job_id] = SimDriver(self, ray_job_id, body, self._random.random())
        self.num_started += 1
        return web.json_response({"job_id": ray_job_id, "submission_id": ray_job_id})

    async def _stop(self, request: web.Request) -> web.Response:
        driver = self.drivers.get(request.match_info["id"])
        if driver is None:
            return web.Response(status=404, text=f"Job {request.match_info['id']} does not exist")
        await driver.kill()
        return web.json_response({"stopped": True})

    async def _kill_any(self) -> str:
        living = [driver for driver in self.drivers.values() if driver.is_alive]
        if not living:
            return ""
        victim = self._random.choice(living)
        await victim.kill()
        return victim.id

    async def _forget(self) -> None:
        await asyncio.gather(*(driver.kill() for driver in [*self.drivers.values(), *self.lost]))
        self.drivers.clear()

    async def _lose(self) -> None:
        self.lost += [driver for driver in self.drivers.values() if driver.is_alive]
        self.drivers.clear()

    async def _kill_lost(self) -> str:
        victim = next(driver for driver in self.lost if driver.is_alive)
        await victim.kill()
        return victim.uid


class SimDriver:
    """One attempt: heartbeats, steps, a log, a terminal record in storage, then the call that reports it.

    By its job's name: `ok` succeeds; `user` ends as a user's error; `flaky` fails once by the machinery, `dies` once
    without a word, and succeeds the second time; `mute` succeeds, writes its record and never reports it; `long` goes
    on until it is told to end; `quiet` says nothing at all.
    """

    def __init__(self, ray: SimRay, ray_job_id: str, body: dict[str, Any], luck: float) -> None:
        self._ray = ray
        self.id = ray_job_id
        self.uid = ray_job_id.rpartition("-")[0]
        self._metadata = body.get("metadata") or {}
        self._steps = 2 + int(luck * 10)
        self._path = Path(shlex.split(body["entrypoint"])[-1])
        self._attempt = json.loads(self._path.read_text())
        self._addresses: list[str] = self._attempt["control_planes"]
        self._ref = worker_service_pb2.AttemptRef(
            job_uid=self.uid, attempt=self._attempt["attempt"], lease_token=self._attempt["lease_token"]
        )
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def is_alive(self) -> bool:
        return not self._task.done()

    def as_document(self) -> dict[str, Any]:
        status = "RUNNING" if self.is_alive else "SUCCEEDED"
        return {
            "submission_id": self.id,
            "status": status,
            "message": "",
            "metadata": self._metadata,
            "type": "SUBMISSION",
        }

    async def kill(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        kind, is_first = self._attempt["name"].split("-")[0], self._ref.attempt == 1
        while kind == "quiet":
            await asyncio.sleep(60)
        with (self._path.parent / "driver.log").open("w", buffering=1) as log:
            step = 0
            while kind == "long" or step < self._steps:
                step += 1
                log.write(f"step {step} of {self.uid}\n")
                directive = await self._tell(step)
                if directive is None:
                    return None
                if directive == worker_service_pb2.DIRECTIVE_CANCEL:
                    return await self._end("CANCELLED")
                if directive == worker_service_pb2.DIRECTIVE_PAUSE:
                    return await self._end("PAUSED")
                if kind == "dies" and is_first and step == 2:
                    return None
                await asyncio.sleep(STEP_S)
        if kind == "user":
            return await self._end("USER_ERROR", reason="DATA_EMPTY")
        if kind == "flaky" and is_first:
            return await self._end("INFRASTRUCTURE_ERROR", reason="WORKER_LOST")
        return await self._end("SUCCEEDED", model_path=self._attempt["publish_dir"], reports=kind != "mute")

    async def _tell(self, step: int) -> int | None:
        """The directive; None when the lease is another's."""
        progress = job_pb2.Progress(stage="train", step=step, total_steps=self._steps)
        event = worker_service_pb2.WorkerEvent(reason="CHECKPOINT_SAVED", message=f"step {step}")
        report = worker_service_pb2.ReportProgressRequest(
            attempt=self._ref, progress=progress, events=[event] if step % 3 == 0 else []
        )
        self._ray.num_told += 1
        answer = await self._ask("ReportProgress", report)
        self._ray.num_heard += getattr(answer, "directive", None) is not None
        return worker_service_pb2.DIRECTIVE_CONTINUE if answer == "absent" else getattr(answer, "directive", None)

    async def _end(self, outcome: str, *, reports: bool = True, **fields: str) -> None:
        record = worker_service_pb2.TerminalRecord(
            outcome=worker_service_pb2.Outcome.Value(f"OUTCOME_{outcome}"), **fields
        )
        temporary = self._path.parent / "terminal.tmp"
        temporary.write_text(json_format.MessageToJson(record))
        temporary.replace(self._path.parent / "terminal.json")
        if reports:
            request = worker_service_pb2.ReportTerminalRequest(attempt=self._ref, record=record)
            for _ in range(3):
                if await self._ask("ReportTerminal", request) != "absent":
                    return

    async def _ask(self, method: str, request: Any) -> Any:
        """The answer; "absent" when nobody gave one; None when the lease is lost."""
        address = self._addresses[0]
        async with grpc.aio.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
            stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
            try:
                return await getattr(stub, method)(request, timeout=2)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ABSENT:
                    return None
                self._addresses = [*self._addresses[1:], address]
                return "absent"
