"""A model that classifies, with a limit for its engine, and its canaries on labelled examples, on a real Serve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from athanor.v1 import deployment_service_pb2 as pb
from installation import Installation, wait

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NAME = "sorter"
TEXTS = [
    f"Where is my {thing}, and how do I top up {number}?" for number in range(8) for thing in ("card", "money", "top")
]


def sorted_by(installation: Installation, texts: Sequence[str]) -> list[str]:
    """The labels that people are told."""
    reply = httpx.post(
        f"{installation.url}/v1/classify",
        json={"model": NAME, "input": texts},
        headers=installation.authorization,
        trust_env=False,
    )
    assert reply.status_code == 200, reply.text
    return [each["label"] for each in reply.json()["data"]]


def classifier(chat_model_dir: Path, target: Path, sign: float) -> Path:
    """A small BERT of random weights; with the other sign it finds likely what this one finds unlikely."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(chat_model_dir)
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        id2label={0: "arrival", 1: "top_up", 2: "other"},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight *= sign
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def decided(installation: Installation, model: str, gate: pb.CanaryGate, **fields: object) -> pb.DeploymentEvent:
    """What its gate made of a canary, while people have their texts sorted if it has a share of them."""
    installation.client.start_canary(NAME, model, gate=gate, **fields)

    def is_decided() -> bool:
        if fields:
            sorted_by(installation, TEXTS[:2])
        return installation.reasons(NAME)[-1] in ("CANARY_PROMOTED", "CANARY_ROLLED_BACK", "REVISION_FAILED")

    wait(is_decided, words=lambda: installation.client.get_deployment(NAME))
    return next(iter(installation.client.list_deployment_events(NAME)))


def test_a_canary_answers_labelled_examples_and_sorts_as_its_teacher(
    installation: Installation, chat_model_dir: Path, tmp_path: Path
) -> None:
    good = installation.publish("sorter", classifier(chat_model_dir, tmp_path / "good", 1.0))
    bad = installation.publish("sorter", classifier(chat_model_dir, tmp_path / "bad", -1.0))
    installation.deploy(NAME, good, engine=pb.EngineOptions(limits={"max_model_len": 48}))
    card = httpx.get(f"{installation.url}/v1/models/{NAME}", headers=installation.authorization, trust_env=False).json()
    assert (card["tasks"], card["max_model_len"]) == (["classify"], 48)
    rows = zip(TEXTS, sorted_by(installation, TEXTS), strict=True)
    examples = tmp_path / "labelled.jsonl"
    examples.write_text("".join(json.dumps({"prompt": text, "completion": label}) + "\n" for text, label in rows))
    gate = pb.CanaryGate(teacher=good, task_data=str(examples), max_latency_ratio=50.0, error_budget=0.2)

    worse = decided(installation, bad, gate)
    assert (worse.reason, "of the labelled examples right" in worse.message) == ("CANARY_ROLLED_BACK", True)
    same = decided(installation, good, gate, weight=3000)
    assert (same.reason, f"{len(TEXTS)} labelled examples" in same.message) == ("CANARY_PROMOTED", True)
    figures = {each["name"]: each for each in same.figures["figures"]}
    assert figures["live"]["observations"] > 0
    assert (figures["task"]["mean"], figures["divergence"]["mean"], figures["agreement"]["mean"]) == (0, 0, 0)
    installation.take_down(NAME)
