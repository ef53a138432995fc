"""Jobs that are asked for at once are checked and stored at once, and yet each as its own caller's."""

from __future__ import annotations

import asyncio
from pathlib import Path

from athanor.v1 import job_pb2
from athanor.v1 import job_service_pb2 as messages
from fakes import World

from cluster.errors import InvalidInput, PermissionDenied
from cluster.lifecycle import State
from cluster.security.caller import Caller, Role, become
from cluster.services.creation import Creations
from cluster.wire import to_struct


def request(train: Path, project: str, request_id: str = "") -> messages.CreateJobRequest:
    spec = {
        "student": {"config": {"model_type": "llama", "hidden_size": 64}},
        "data": {"train": str(train), "format": "prompt_completion"},
        "training": {"max_steps": 5},
    }
    job = job_pb2.Job(name="a-job", kind="FineTune", project=project, spec=to_struct(spec))
    return messages.CreateJobRequest(job=job, request_id=request_id)


async def test_each_caller_is_asked_for_its_own_rights_and_one_refusal_is_nobody_elses(
    world: World, tmp_path: Path
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "hello", "completion": "world"}\n')
    creations = Creations(world.store)

    async def ask(name: str, project: str, file: Path = train) -> job_pb2.Job:
        become(Caller(name, Role.SUBMITTER, (f"of-{name}",)))
        return await creations.create(request(file, project))

    anna, bert, thief, typo = await asyncio.gather(
        ask("anna", "of-anna"),
        ask("bert", "of-bert"),
        ask("thief", "of-anna"),
        ask("typo", "of-typo", tmp_path / "trian.jsonl"),
        return_exceptions=True,
    )
    assert isinstance(anna, job_pb2.Job)
    assert isinstance(bert, job_pb2.Job)
    assert [anna.creator, bert.creator] == ["anna", "bert"]
    assert isinstance(thief, PermissionDenied)
    assert isinstance(typo, InvalidInput)
    stored = [world.store.get_job(each.uid) for each in (anna, bert)]
    assert [(job.project, job.creator, job.state) for job in stored] == [
        ("of-anna", "anna", State.QUEUED),
        ("of-bert", "bert", State.QUEUED),
    ]


async def test_one_request_that_comes_many_times_at_once_is_one_job(world: World, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text('{"prompt": "hello", "completion": "world"}\n')
    creations = Creations(world.store)
    made = await asyncio.gather(*(creations.create(request(train, "", "the-same")) for _ in range(40)))
    assert len({job.uid for job in made}) == 1
