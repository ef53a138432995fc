"""A teacher in two shards (DeepSpeed ZeRO-3) answers as the whole one does, bit for bit, whichever shard is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from workers import run_workers

from tests.tiny_jobs import TINY_LLAMA
from trainer.batch import Batch, collate
from trainer.models import fresh_model, write_model
from trainer.peers import Peers
from trainer.teacher import TeacherModel
from trainer.tokenizer import train_tokenizer
from trainer.wanted import Wanted

SAMPLES = [
    {"sample_id": i, "input_ids": list(range(5 + i, 14 + 3 * i)), "labels": [-100, *range(6 + i, 14 + 3 * i)]}
    for i in range(4)
]
PROMPTS = [[10 + i, 20, 30 + i][: 1 + i % 3] for i in range(5)]


WANTED = {
    "taps": Wanted(taps=("hidden:0", "hidden:1", "hidden:last")),
    "full": Wanted("full_logits", taps=("scores:1", "values:2")),
    "own": Wanted("full_logits", own_logits=True),
    "top": Wanted("topk_logits", top_k=7, temperature=2.0),
    "inner": Wanted(None, taps=("hidden:1", "scores:2")),
}


def payloads(teacher: TeacherModel, batch: Batch | None) -> dict[str, torch.Tensor]:
    """Every form and inner value, by name."""
    found: dict[str, torch.Tensor] = {}
    for name, wanted in WANTED.items():
        targets = teacher.targets(batch, wanted)
        parts = {"hidden": targets.hidden_ND, "logits": targets.logits_NV, **targets.inner}
        if targets.topk is not None:
            parts |= vars(targets.topk)
        found |= {f"{name} {part}": value.clone() for part, value in parts.items() if value is not None}
    return found


def answers(teacher: TeacherModel, batch: Batch | None, prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """One of each question, and the first once more; token ids are kept as one row, -1 after each completion."""
    first = teacher.targets(batch, Wanted()).hidden_ND
    head = teacher.head().weight_VD
    written = [one for row in teacher.generate(prompts, 12) for one in (*row, -1)]
    scores = teacher.score(batch)
    again = teacher.targets(batch, Wanted()).hidden_ND
    assert first is not None
    assert again is not None
    return {
        "hidden": first,
        "again": again,
        "head": head.clone(),
        "written": torch.tensor(written),
        "scores": torch.tensor(scores, dtype=torch.float64),
        **payloads(teacher, batch),
    }


def ask(peers: Peers, model: Path, dtype: str, directory: Path) -> None:
    """Each shard in turn is the busy one; with both, the second has other work."""
    batch = collate([(0, 1), (2,)], SAMPLES, 0)
    teacher = TeacherModel(str(model), dtype=dtype, rank=peers.rank, world=peers.world)
    for busy in range(peers.world):
        mine = peers.rank == busy
        found = answers(teacher, batch if mine else None, PROMPTS if mine else [])
        if mine:
            save_file(found, directory / f"{peers.world}-{busy}.safetensors")
    other = collate([(3,)], SAMPLES, 0) if peers.rank else batch
    found = answers(teacher, other, PROMPTS[:1] if peers.rank else PROMPTS)
    save_file(found, directory / f"{peers.world}-both-{peers.rank}.safetensors")


@pytest.mark.parametrize(("dtype", "tied"), [("float32", False), ("bfloat16", True)])
def test_shards_answer_as_the_whole(dtype, tied, tmp_path):
    tokenizer = train_tokenizer(["where is my card"], 300)
    model = fresh_model({**TINY_LLAMA, "initializer_range": 0.3, "tie_word_embeddings": tied}, tokenizer, 1)
    write_model(tmp_path / "model", model, dict(model.named_parameters()), tokenizer)
    for world in (1, 2):
        assert run_workers(ask, world, tmp_path, tmp_path / "model", dtype, tmp_path) == [0] * world
    whole = load_file(tmp_path / "1-0.safetensors")
    assert whole["written"].numel() > len(PROMPTS) + 10
    for name in ("2-0", "2-1", "2-both-0"):
        shards = load_file(tmp_path / f"{name}.safetensors")
        assert all(torch.equal(shards[key], whole[key]) for key in whole), name
    assert load_file(tmp_path / "2-both-1.safetensors")["scores"].shape == (1, 2)
