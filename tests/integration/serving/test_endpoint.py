"""A published model behind a real Ray Serve, used through the real `openai` client under the path of its deployment."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from athanor.v1.options_pb2 import ROLE_VIEWER
from installation import QUESTION, Installation, wait

pytestmark = [pytest.mark.ray, pytest.mark.slow]
GREEDY = {"model": "support-bot", "temperature": 0}


@pytest.fixture(scope="module")
def client(installation: Installation, models) -> openai.OpenAI:
    made = installation.deploy("support-bot", models.good)
    assert made.endpoint == f"{installation.url}/support-bot/v1"
    yield installation.openai("support-bot")
    installation.take_down("support-bot")
    with httpx.Client(headers=installation.authorization, trust_env=False) as http:
        wait(lambda: http.get(f"{made.endpoint}/models").status_code == 404)


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


def test_the_model_is_listed_with_its_version(client, models):
    [model] = client.models.list().data
    assert (model.id, model.owned_by, model.model) == ("support-bot", "athanor", "student")
    assert f"{model.model}@{model.version}" == models.good


def test_answers_are_what_the_model_says_whole_and_streamed(client, expected):
    assert ask(client) == expected
    chunks = list(client.chat.completions.create(messages=QUESTION, max_tokens=12, stream=True, **GREEDY))
    assert len(chunks) > 3
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_clients_at_once_get_the_same_answer(client, expected):
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda _: ask(client), range(32))) == [expected] * 32


def test_wrong_input_and_unknown_models_are_told(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="support-bot", messages=QUESTION, temperature=7)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as caught:
        client.with_options(base_url=str(client.base_url).replace("/support-bot", "")).chat.completions.create(
            model="gpt-4o", messages=QUESTION
        )
    assert caught.value.code == "model_not_found"


def test_a_token_of_the_control_plane_lets_in_and_no_other(installation, client):
    """A viewer's will do; the gateway asks the control plane about each."""
    made = installation.client.create_token("app", ROLE_VIEWER, ["default"])
    with installation.openai("support-bot", api_key=made.secret) as viewer:
        assert ask(viewer)
    for wrong in ("ath_nobody", made.secret[:-1]):
        with installation.openai("support-bot", api_key=wrong) as stranger, pytest.raises(openai.AuthenticationError):
            ask(stranger)
    bare = httpx.get(f"{installation.url}/v1/models", trust_env=False)
    assert (bare.status_code, bare.headers["www-authenticate"]) == (401, "Bearer")


def test_a_request_is_found_in_the_log_by_its_id(client, installation):
    client.chat.completions.create(messages=QUESTION, max_tokens=1, extra_headers={"x-request-id": "find-me"}, **GREEDY)
    logs = Path(installation.head.temp_dir) / "session_latest" / "logs" / "serve"
    wait(lambda: any("find-me: 200 by" in log.read_text() for log in logs.glob("*athanor*Gateway*.log")))
