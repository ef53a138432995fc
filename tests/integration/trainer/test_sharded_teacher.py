"""A teacher in shards (DeepSpeed ZeRO-3) answers as the whole one does, bit for bit, and no shard holds the whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from workers import in_turn, one_by_one, run_workers

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA
from trainer.batch import Batch, collate
from trainer.errors import UserError
from trainer.generate import TokenIds
from trainer.models import fresh_model, write_model
from trainer.peers import Peers
from trainer.taps import reads_attention
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
        if reads_attention(wanted.taps) and teacher._root.model.config.model_type == "bloom":
            continue  # its attention is its own, and refused
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


QWEN2 = {**TINY_LLAMA, "model_type": "qwen2"}
MIXTRAL = {**TINY_LLAMA, "model_type": "mixtral", "num_local_experts": 4, "vocab_size": 300}
BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "indexed": ({**TINY_LLAMA, "num_hidden_layers": 3}, "float32"),
    "biased": (QWEN2, "float32"),
    "biased-and-rounded": (QWEN2, "bfloat16"),
    "tied": ({**TINY_LLAMA, "tie_word_embeddings": True}, "float32"),
    "gpt2": (TINY_GPT2, "float32"),
    "without-positions": (BLOOM, "float32"),
    "fused": (MIXTRAL, "float32"),
}


def write_kind(directory: Path, name: str) -> None:
    """Weights that are large enough to tell answers apart, and biases that are not zero."""
    tokenizer = train_tokenizer(["where is my card"], 300)
    config = {"initializer_range": 0.3, "tie_word_embeddings": False, **KINDS[name][0]}
    torch.manual_seed(1)
    if name == "fused":
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).float()
    else:
        model = fresh_model(config, tokenizer, 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(directory, max_shard_size="20KB" if name == "indexed" else "1GB")


def weights_held(model: nn.Module) -> dict[str, int]:
    """Elements: of the whole model, of this process' share with its padding, and gathered besides."""
    parameters = list(model.parameters())
    return {
        "whole": sum(parameter.ds_numel for parameter in parameters),
        "share": sum(parameter.ds_tensor.numel() for parameter in parameters),
        "matrices": sum(parameter.numel() for parameter in parameters if len(parameter.ds_shape) > 1),
        "parameters": len(parameters),
    }


def ask_kinds(peers: Peers, directory: Path) -> None:
    """Every kind of model is asked by the last shard; what was warned of and what is held go to files."""
    warned = logging.FileHandler(directory / f"warned-{peers.world}-{peers.rank}")
    logging.getLogger("trainer").addHandler(warned)
    batch = collate([(0,), (1,), (2,)], SAMPLES, 0) if peers.rank == peers.world - 1 else None
    held = {}
    for name, (_, dtype) in one_by_one(KINDS.items()):
        teacher = TeacherModel(
            str(directory / name), dtype=dtype, rank=peers.rank, world=peers.world, tokens=TokenIds(256, 0, (1,))
        )
        found = answers(teacher, batch, PROMPTS if batch is not None else [])
        if batch is not None:
            save_file(found, directory / f"{name}-{peers.world}.safetensors")
        if peers.world > 1:
            held[name] = weights_held(teacher._root)
    logging.getLogger("trainer").removeHandler(warned)
    (directory / f"held-{peers.world}-{peers.rank}").write_text(json.dumps(held))


def pieces(size: int) -> Any:
    return lambda hidden, _: [slice(at, at + size) for at in range(0, len(hidden), size)] or [slice(0, 0)]


def fetched(teacher: TeacherModel, batch: Batch, size: int) -> int:
    """How often shards fetch of each other to score a batch in pieces of so many rows."""
    import trainer.teacher as teaching

    teaching.blocks = pieces(size)
    fetches: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        if teacher._peers.world > 1:
            from deepspeed.comm import comm

            real = comm.cdb.all_gather_into_tensor
            patch.setattr(
                comm.cdb, "all_gather_into_tensor", lambda *args, **named: fetches.append(1) or real(*args, **named)
            )
        teacher.score(batch)
    return len(fetches)


def ask_folded(peers: Peers, model: Path, directory: Path) -> None:
    """A head that no `Head` describes, asked in pieces: the shards have different numbers of them."""
    import trainer.teacher as teaching

    def folded(load: Any) -> Any:
        def loaded(*where: Any) -> Any:
            found = load(*where)
            whole = found[0] if isinstance(found, tuple) else found
            whole.lm_head.register_forward_hook(lambda _module, _args, logits: logits.abs())
            return found

        return loaded

    teaching.load_model, teaching.load_sharded = folded(teaching.load_model), folded(teaching.load_sharded)
    teaching.blocks = pieces(4)
    teacher = TeacherModel(
        str(model), dtype="float32", rank=peers.rank, world=peers.world, tokens=TokenIds(256, 0, (1,))
    )
    assert teacher._head_stands_alone
    batch = collate([(0, 1), (2,)] if peers.is_first else [(3,)], SAMPLES, 0)
    found = {name: value for name, value in payloads(teacher, batch).items() if not name.startswith("taps")}
    found["scores"] = torch.tensor(teacher.score(batch), dtype=torch.float64)
    found["fetched"] = torch.tensor([fetched(teacher, batch, size) for size in (1, 4, 1000)])
    save_file(found, directory / f"folded-{peers.world}-{peers.rank}.safetensors")


def load_broken(peers: Peers, model: Path, directory: Path) -> None:
    with pytest.raises(UserError) as error:
        TeacherModel(str(model), dtype="float32", rank=peers.rank, world=peers.world, tokens=TokenIds(256, 0, (1,)))
    (directory / f"told-{peers.world}-{peers.rank}").write_text(f"{error.value.reason}: {error.value}")


TIED = {"float32": False, "bfloat16": True}


def write_models(root: Path) -> None:
    """One for each dtype, those of `KINDS`, and one that lacks a weight."""
    tokenizer = train_tokenizer(["where is my card"], 300)
    for dtype, tied in TIED.items():
        model = fresh_model({**TINY_LLAMA, "initializer_range": 0.3, "tie_word_embeddings": tied}, tokenizer, 1)
        (root / dtype).mkdir()
        write_model(root / dtype / "model", model, dict(model.named_parameters()), tokenizer)
    for name in KINDS:
        write_kind(root / "kinds" / name, name)
    write_kind(root / "broken", "tied")
    weights = load_file(root / "broken" / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, root / "broken" / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the answers are: each number of shards is started once for all questions, which are shorter."""
    root = tmp_path_factory.mktemp("asked")
    write_models(root)
    each = [(ask, root / dtype / "model", dtype, root / dtype) for dtype in TIED]
    each += [(load_broken, root / "broken", root), (ask_folded, root / "kinds" / "tied", root)]
    kinds = (ask_kinds, root / "kinds")
    for world, works in ((1, [kinds, *each]), (2, each), (3, [kinds])):
        assert run_workers(in_turn, world, root, works) == [0] * world
    return root


@pytest.mark.parametrize("dtype", TIED)
def test_shards_answer_as_the_whole(asked, dtype):
    directory = asked / dtype
    whole = load_file(directory / "1-0.safetensors")
    assert whole["written"].numel() > len(PROMPTS) + 10
    for name in ("2-0", "2-1", "2-both-0"):
        shards = load_file(directory / f"{name}.safetensors")
        assert all(torch.equal(shards[key], whole[key]) for key in whole), name
    assert load_file(directory / "2-both-1.safetensors")["scores"].shape == (1, 2)


def test_every_kind_of_model_and_file_answers_as_the_whole(asked):
    directory = asked / "kinds"
    assert (directory / "indexed" / "model.safetensors.index.json").is_file()
    for name in KINDS:
        whole, shards = (load_file(directory / f"{name}-{world}.safetensors") for world in (1, 3))
        assert [key for key in whole if not torch.equal(shards[key], whole[key])] == [], name
    assert (directory / "warned-1-0").read_text() == ""
    for rank in range(3):
        (warning,) = (directory / f"warned-3-{rank}").read_text().splitlines()
        assert "fused" in warning
        assert "reads the whole model before it is parted: model.layers.0.mlp.experts" in warning
        for name, held in json.loads((directory / f"held-3-{rank}").read_text()).items():
            assert held["share"] <= held["whole"] / 3 + held["parameters"], name
            assert held["matrices"] == 0, name


def test_shards_with_a_head_of_their_own_answer_as_the_whole(asked):
    whole, shard = (load_file(asked / f"folded-{world}-0.safetensors") for world in (1, 2))
    assert whole.pop("fetched").tolist() == [0, 0, 0]
    in_rows, in_fours, at_once = shard.pop("fetched").tolist()
    assert in_rows == in_fours == at_once > 0, "the head is fetched once, however many pieces it is asked in"
    assert [key for key in whole if not torch.equal(shard[key], whole[key])] == []


def test_missing_weights_are_refused_by_every_shard_as_by_the_whole(asked):
    told = {(asked / f"told-{name}").read_text() for name in ("1-0", "2-0", "2-1")}
    assert len(told) == 1
    assert "MODEL_INVALID" in told.pop()
