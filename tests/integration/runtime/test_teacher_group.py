"""The teacher group on a real Ray: the answers of one process, bit for bit; its losses; and what passes the gateway."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import torch
from drivers import actors_of, kill, until
from ray import cloudpickle

from cluster.driver.remote_teacher import RemoteTeacher
from cluster.driver.teacher_dispatch import Policy, TeacherLost
from cluster.driver.teacher_group import TeacherGroup, TeacherPlan, start_teacher
from cluster.driver.teacher_plan import load_teacher
from cluster.ray_head import RayHead
from trainer.batch import Batch, Sample, collate, empty_batch
from trainer.errors import UserError
from trainer.head import Head
from trainer.teacher import LocalTeacher, Targets, TeacherModel
from trainer.wanted import TeacherFacts, Wanted

pytestmark = pytest.mark.ray

PAD = 0
LARGE = 16 * 1024 * 1024
"""float32 values of one answer: 64 MiB."""


def batch(*sequences: Sequence[int]) -> Batch:
    samples = [Sample(sample_id=i, input_ids=list(ids), labels=list(ids)) for i, ids in enumerate(sequences)]
    return collate([[i] for i in range(len(samples))], samples, PAD)


class Echo:
    """Answers with the token ids it was given; all shards meet in every call, as those of ZeRO-3 do."""

    def __init__(self, rank: int, world: int, size: int = 0) -> None:
        self._world = world
        self._size = size

    def head(self) -> Head:
        self._meet()
        return Head(torch.eye(3), None)

    def facts(self, batch: Batch | None) -> TeacherFacts:
        raise NotImplementedError(batch)

    def targets(self, batch: Batch | None, wanted: Wanted) -> Targets:
        self._meet()
        if batch is None:
            return Targets(None)
        if batch.num_targets > 6:
            raise UserError("TOO_LONG", "longer than this teacher reads")
        return Targets(torch.zeros(self._size) if self._size else batch.input_ids_BT.float())

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        self._meet()
        return [list(prompt)[:max_new_tokens] for prompt in prompts]

    def score(self, batch: Batch | None) -> list[tuple[float, int]]:
        self._meet()
        return [] if batch is None else [(float(sample_id), 1) for sample_id in batch.sample_ids]

    def _meet(self) -> None:
        if self._world > 1:
            torch.distributed.barrier()


class Mortal(Echo):
    """Dies of every question about a batch."""

    def targets(self, batch: Batch | None, wanted: Wanted) -> Targets:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError((batch, wanted))


def load_mortal(rank: int, world: int) -> Mortal:
    return Mortal(rank, world)


def load_echo(rank: int, world: int) -> Echo:
    return Echo(rank, world)


def load_large(rank: int, world: int) -> Echo:
    return Echo(rank, world, LARGE)


def load_never(rank: int, world: int) -> Echo:
    raise UserError("UNSAFE_MODEL_FILE", "only pickled weights")


@pytest.fixture(scope="module", autouse=True)
def connected(ray_cluster: RayHead) -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # shards cannot import test modules
    ray.init(ray_cluster.address, namespace="teacher-tests", log_to_driver=False, logging_level="WARNING")
    yield
    ray.shutdown()


@pytest.fixture
def start() -> Iterator[Callable[..., RemoteTeacher]]:
    groups: list[TeacherGroup] = []

    def start_group(load, shards: int, replicas: int = 1, **policy: float) -> RemoteTeacher:
        if groups:
            groups.pop().stop()
        plan = TeacherPlan(load, shards, cpus_per_shard=0.5, replicas=replicas, policy=Policy(**policy))
        groups.append(start_teacher(plan))
        return RemoteTeacher(groups[0].gateway, timeout_s=120)

    yield start_group
    while groups:
        groups.pop().stop()
    until(lambda: not actors_of("TeacherShard") and not actors_of("TeacherGateway"), "the group ended")


WANTED = [
    Wanted(taps=("hidden:0", "hidden:last")),
    Wanted("full_logits", taps=("scores:1", "values:2")),
    Wanted("topk_logits", top_k=7, temperature=2.0),
    Wanted(None, taps=("hidden:1", "hidden:last", "scores:2")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "replicas"), [(1, 1), (2, 1), (1, 2)])
def test_a_remote_teacher_answers_as_a_local_one_bit_for_bit(
    start, shards: int, replicas: int, chat_model_dir: Path
) -> None:
    """Every payload and inner value, asked for side by side, so that operations and replicas take turns."""
    torch.set_num_threads(1)
    local = LocalTeacher(TeacherModel(str(chat_model_dir), dtype="float32"))
    remote = start(partial(load_teacher, str(chat_model_dir), "float32"), shards, replicas)
    questions = [batch([5, 9, 30, 41, 7], [8, 6]), batch([70, 71, 72]), empty_batch(PAD)]
    asked = [(question, wanted) for question in questions for wanted in WANTED]
    answers = [remote.request(question, wanted) for question, wanted in asked]
    for (question, wanted), answer in zip(asked, answers, strict=True):
        assert_same_bits(answer(), local.request(question, wanted)())
    for question in questions:
        assert remote.score(question) == local.score(question)
        assert remote.facts(question) == local.facts(question)
    assert torch.equal(remote.head().weight_VD, local.head().weight_VD)
    prompts = [[5, 9, 30], [41], [7, 7], [60, 61, 62, 63]]
    assert remote.generate(prompts, 8) == local.generate(prompts, 8)


def assert_same_bits(one: Targets, other: Targets) -> None:
    for found, expected in zip(tensors(one), tensors(other), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def tensors(targets: Targets) -> list[torch.Tensor]:
    top = targets.topk
    found = [targets.hidden_ND, targets.logits_NV, *(targets.inner[name] for name in sorted(targets.inner))]
    found += [] if top is None else [top.ids_MK, top.log_probs_MK, top.rest_M]
    return [one for one in found if one is not None]


def test_answers_belong_to_their_questions_however_they_are_dealt_out(start) -> None:
    teacher = start(load_echo, 2)
    questions = [batch([n, n, n]) for n in range(1, 8)]
    answers = [teacher.request(question, Wanted()) for question in questions]
    for question, answer in reversed(list(zip(questions, answers, strict=True))):
        assert torch.equal(answer().hidden_ND, question.input_ids_BT.float())
    prompts = [[n] * (1 + n % 5) for n in range(300)]
    assert teacher.generate(prompts, 3) == [prompt[:3] for prompt in prompts]
    assert teacher.generate([], 3) == []
    assert teacher.score(batch([1], [2])) == [(0.0, 1), (1.0, 1)]
    assert teacher.head() is teacher.head()


def test_replicas_share_the_questions(start) -> None:
    """Two groups of one actor each; whoever is killed, the answers come."""
    teacher = start(load_echo, 1, 2)
    questions = [batch([n, n, n]) for n in range(1, 20)]
    answers = [teacher.request(question, Wanted()) for question in questions]
    for question, answer in zip(questions, answers, strict=True):
        assert torch.equal(answer().hidden_ND, question.input_ids_BT.float())
    shards = actors_of("TeacherShard")
    assert len(shards) == 2
    kill(shards[0])
    again = [teacher.request(question, Wanted()) for question in questions]
    for question, answer in zip(questions, again, strict=True):
        assert torch.equal(answer().hidden_ND, question.input_ids_BT.float())


def test_a_killed_shard_costs_no_answer(start) -> None:
    teacher, question = start(load_echo, 2), batch([4, 5, 6])
    expected = question.input_ids_BT.float()
    assert torch.equal(teacher.request(question, Wanted())().hidden_ND, expected)
    before = {process.pid for process in actors_of("TeacherShard")}
    assert len(before) == 2
    kill(actors_of("TeacherShard")[0])
    answers = [teacher.request(question, Wanted()) for _ in range(5)]
    assert all(torch.equal(answer().hidden_ND, expected) for answer in answers)
    assert before.isdisjoint(process.pid for process in actors_of("TeacherShard"))


def test_a_hanging_shard_is_ended_and_asked_again(start) -> None:
    teacher, question = start(load_echo, 2, round_timeout_s=3.0), batch([4, 5, 6])
    expected = question.input_ids_BT.float()
    assert torch.equal(teacher.request(question, Wanted())().hidden_ND, expected)
    before = actors_of("TeacherShard")
    before[0].suspend()
    assert torch.equal(teacher.request(question, Wanted())().hidden_ND, expected)
    until(lambda: not any(process.is_running() for process in before), "the hanging shard is ended too")


def test_an_answer_that_died_with_its_shard_is_asked_for_again(start) -> None:
    teacher = start(load_echo, 1)
    first, second = teacher.request(batch([4, 5, 6]), Wanted()), teacher.request(batch([7, 8, 9]), Wanted())
    second()  # so the first one lies in the object store, unread
    kill(actors_of("TeacherShard")[0])
    assert torch.equal(first().hidden_ND, batch([4, 5, 6]).input_ids_BT.float())


def test_a_killed_gateway_comes_back_with_new_shards(start) -> None:
    teacher, question = start(load_echo, 1), batch([4, 5, 6])
    teacher.request(question, Wanted())()
    kill(actors_of("TeacherGateway")[0])
    assert torch.equal(teacher.request(question, Wanted())().hidden_ND, question.input_ids_BT.float())


def test_losses_far_apart_do_not_add_up(start) -> None:
    teacher, question = start(load_echo, 1, max_restarts=1), batch([4, 5, 6])
    for _ in range(3):
        assert torch.equal(teacher.request(question, Wanted())().hidden_ND, question.input_ids_BT.float())
        kill(actors_of("TeacherShard")[0])


def test_a_teacher_that_dies_of_its_question_again_and_again_is_lost(start) -> None:
    teacher, question = start(load_mortal, 1, max_restarts=1), batch([4, 5, 6])
    with pytest.raises(TeacherLost, match="2 times"):
        teacher.request(question, Wanted())()


def test_errors_of_the_teacher_arrive_as_they_were_raised(start) -> None:
    teacher = start(load_echo, 2)
    with pytest.raises(UserError, match="longer than this teacher reads") as caught:
        teacher.request(batch(range(1, 9)), Wanted())()
    assert caught.value.reason == "TOO_LONG"
    assert teacher.score(batch([1])) == [(0.0, 1)]
    with pytest.raises(UserError, match="only pickled weights"):
        start(load_never, 1).head()


def ask_for_large_answers(count: int) -> int:
    """A student's part, in a process of its own: the bytes that arrived."""
    teacher = RemoteTeacher.connect(0, 1, Policy())
    sizes = [teacher.request(batch([4, 5, 6]), Wanted())().hidden_ND.nbytes for _ in range(count)]
    return sum(sizes)


def test_no_payload_passes_through_driver_or_gateway(start) -> None:
    """I6: ten answers travel, and driver and gateway never hold as much as one of them."""
    start(load_large, 1)
    student = ray.remote(ask_for_large_answers).options(num_cpus=0.5)
    ray.get(student.remote(1))
    watched = {"driver": os.getpid(), "gateway": actors_of("TeacherGateway")[0].pid}
    before = {name: own_memory(pid) for name, pid in watched.items()}
    assert ray.get(student.remote(10)) == 10 * 4 * LARGE
    grown_mib = {name: (peak_memory(pid) - before[name]) // 1024**2 for name, pid in watched.items()}
    assert all(growth < 32 for growth in grown_mib.values()), grown_mib


def own_memory(pid: int) -> int:
    """Resident bytes now; from here on `peak_memory` counts."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return psutil.Process(pid).memory_info().rss


def peak_memory(pid: int) -> int:
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
