"""A model directory behind a real Ray Serve, brought up by the deployer and used through the real `openai` client."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import pytest

from cluster.deployer import Deployer, DeploymentStatus
from cluster.ray_head import HOST, RayHead, free_ports
from cluster.store.records import DeploymentState, StoredDeployment

pytestmark = [pytest.mark.ray, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "Where is my card?"}]
GREEDY = {"model": "support-bot", "temperature": 0}
Apply = Callable[[Sequence[StoredDeployment]], dict[str, DeploymentStatus]]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, chat_model_dir: Path) -> Path:
    """Of an installation that has published one model."""
    root = tmp_path_factory.mktemp("storage")
    shutil.copytree(chat_model_dir, root / "models" / "support-student")
    return root


@pytest.fixture(scope="module")
def bot(storage: Path) -> StoredDeployment:
    return StoredDeployment(
        name="support-bot",
        model="support-student",
        resolved_model="support-student@3",
        path=str(storage / "models" / "support-student"),
        num_replicas=1,
        cpus_per_replica=0.5,
        gpus_per_replica=0.0,
        state=DeploymentState.PENDING,
        message="",
        create_time_us=0,
        update_time_us=0,
    )


@pytest.fixture(scope="module")
def apply(ray_cluster: RayHead, storage: Path) -> Apply:
    token, [port] = Path(ray_cluster.token_path), free_ports(1)

    async def once(deployments):
        deployer = Deployer(ray_cluster.dashboard_url, token, HOST, port, storage=storage)
        try:
            return await deployer.apply(deployments, {})
        finally:
            await deployer.aclose()

    return lambda deployments: asyncio.run(once(deployments))


def wait(observe: Callable[[], object], deadline_s: float = 120.0) -> None:
    """Until `observe` is true; what it was last is in the failure."""
    deadline = time.monotonic() + deadline_s
    while not observe():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.25)


@pytest.fixture(scope="module")
def endpoint(apply: Apply, bot: StoredDeployment) -> str:
    """The base URL, once the deployment is ready."""
    seen: list[DeploymentStatus] = []
    wait(lambda: seen.append(apply([bot])["support-bot"]) or seen[-1].state is DeploymentState.READY)
    assert seen[0].state is not DeploymentState.READY
    assert not [status for status in seen if status.state is DeploymentState.FAILED]
    return seen[-1].endpoint


@pytest.fixture(scope="module")
def client(endpoint: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint, api_key="unused", max_retries=0)


@pytest.fixture(scope="module")
def expected(chat_model_dir: Path) -> str:
    """What `model.generate` answers to the question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    model = AutoModelForCausalLM.from_pretrained(chat_model_dir).eval()
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(client: openai.OpenAI) -> str:
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=12, **GREEDY)
    return answer.choices[0].message.content


def test_the_model_is_listed(client):
    [model] = client.models.list().data
    assert (model.id, model.owned_by, model.model, model.version) == ("support-bot", "athanor", "support-student", 3)


def test_it_is_healthy(endpoint):
    reply = httpx.get(f"{endpoint.removesuffix('/v1')}/healthz", trust_env=False)
    assert reply.json() == {"status": "ok", "running": 0, "waiting": 0}


def test_a_chat_completion_is_what_the_model_says(client, expected):
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=12, **GREEDY)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 12


def test_a_chat_stream_says_the_same_in_pieces(client, expected):
    stream = client.chat.completions.create(messages=QUESTION, max_tokens=12, stream=True, **GREEDY)
    chunks = list(stream)
    assert len(chunks) > 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == "length"


def test_completions_plain_and_streamed(client):
    plain = client.completions.create(prompt="Where is", max_tokens=8, **GREEDY)
    stream = client.completions.create(prompt="Where is", max_tokens=8, stream=True, **GREEDY)
    assert plain.choices[0].text == "".join(chunk.choices[0].text for chunk in stream) != ""


def test_clients_at_once_get_the_same_answer(client, expected):
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: ask(client), range(32))) == [expected] * 32


def test_wrong_input_is_a_bad_request(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="support-bot", messages=QUESTION, temperature=7)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(prompt="card " * 400, **GREEDY)
    assert caught.value.code == "context_length_exceeded"


def test_another_model_and_another_deployment_are_not_found(client, endpoint):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    assert httpx.get(endpoint.replace("support-bot", "other"), trust_env=False).status_code == 404


def test_a_model_that_cannot_be_served_says_why_and_leaves_the_others_alone(apply, bot, client, expected, storage):
    broken = replace(bot, name="broken-bot", path=str(storage / "models" / "gone"))
    seen: list[DeploymentStatus] = []
    wait(lambda: seen.append(apply([bot, broken])["broken-bot"]) or seen[-1].state is DeploymentState.FAILED)
    assert seen[-1].message.endswith(f"ModelDirectoryError: there is no model directory {storage}/models/gone")
    assert apply([bot, broken])["support-bot"].state is DeploymentState.READY
    assert ask(client) == expected
    wait(lambda: apply([bot, replace(broken, state=DeploymentState.DELETING)]).keys() == {"support-bot"})


def test_a_new_version_comes_up_and_a_deleted_one_goes(apply, bot, client, endpoint):
    newer = replace(bot, resolved_model="support-student@4")
    wait(lambda: apply([newer])["support-bot"].state is DeploymentState.READY)
    wait(lambda: client.models.list().data[0].version == 4)
    wait(lambda: apply([replace(newer, state=DeploymentState.DELETING)]) == {})
    wait(lambda: httpx.get(f"{endpoint}/models", trust_env=False).status_code == 404)
