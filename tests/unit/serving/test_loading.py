"""A directory becomes the engine that its config asks for, and a causal one ends as its tokenizer says."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaModel,
)

from serving import vllm_engine
from serving.engine import GenerationRequest, Sampling
from serving.errors import EngineFailed, EngineOptionsError, ModelDirectoryError
from serving.loading import load, over, pooling_over, task_of
from serving.model_dir import ModelDirectory
from serving.options import EngineOptions
from serving.pooling import PoolingOptions

GREEDY = Sampling(temperature=0)


@pytest.fixture
def tokenizer(chat_model_dir):
    return AutoTokenizer.from_pretrained(chat_model_dir)


@pytest.fixture
def model(chat_model_dir):
    """One's own copy, to be altered."""
    return AutoModelForCausalLM.from_pretrained(chat_model_dir).eval()


async def answer(model, tokenizer, prompt, sampling=GREEDY):
    """(text, tokens that were counted, why it ended)."""
    engine = over(model, tokenizer).engine
    deltas = [delta async for delta in engine.submit(GenerationRequest(tuple(prompt), 24, sampling))]
    engine.close()
    text = "".join(delta.text for delta in deltas)
    return text, sum(delta.num_tokens for delta in deltas), deltas[-1].finish_reason


async def test_the_tokenizers_end_and_the_declared_ones_all_stop_an_answer(model, tokenizer):
    prompt = [9, 30, 31]
    first = model(torch.tensor([prompt])).logits[0, -1].argmax().item()
    second = tokenizer.convert_tokens_to_ids("<|system|>")
    model.generation_config.eos_token_id = [second]
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    assert await answer(model, tokenizer, prompt) == ("", 1, "stop")
    model.generation_config.eos_token_id = [second, first]
    tokenizer.eos_token = "<|system|>"
    assert await answer(model, tokenizer, prompt) == ("", 1, "stop")


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=5)])
async def test_padded_rows_of_the_head_are_never_chosen(model, tokenizer, sampling):
    expected = await answer(model, tokenizer, [9, 30, 31], sampling)
    tokens, forward = len(tokenizer), model.forward

    def padded(**kwargs):
        """A head of 8 more rows, all of which are more likely than any token."""
        output = forward(**kwargs)
        best = output.logits.amax(-1, keepdim=True) + 10
        output.logits = torch.cat([output.logits, best.expand(*best.shape[:-1], 8)], dim=-1)
        assert output.logits.shape[-1] == tokens + 8
        return output

    model.forward = padded
    assert await answer(model, tokenizer, [9, 30, 31], sampling) == expected


async def test_a_tokenizer_may_know_more_tokens_than_the_head_has(model, tokenizer):
    penalised = Sampling(temperature=0, repetition_penalty=1.3, presence_penalty=0.5, logit_bias=((3, 1.0),))
    expected = await answer(model, tokenizer, [9, 30, 31], penalised)
    tokenizer.add_tokens([f"<|extra-{number}|>" for number in range(5)])
    assert len(tokenizer) > model.get_output_embeddings().weight.shape[0]
    assert await answer(model, tokenizer, [9, 30, 31], penalised) == expected


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
def test_a_replica_is_as_healthy_as_its_engine(model, tokenizer):
    from serving.app import Replica  # Ray Serve's own models warn when they are made

    replica = Replica.__new__(Replica)
    replica._model = over(model, tokenizer)
    replica.check_health()
    replica._model.engine.close()
    with pytest.raises(EngineFailed):
        replica.check_health()


BERT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Writes a BERT beside the tokenizer, and loads it."""
    engines = []

    def saved(kind, files=None, **changes):
        torch.manual_seed(4)
        config = BertConfig(**BERT, vocab_size=len(tokenizer), max_position_embeddings=40, pad_token_id=0, **changes)
        model = kind(config).eval()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        for name, document in (files or {}).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(document))
        loaded = load(ModelDirectory(tmp_path, 0))
        engines.append(loaded.pooling)
        return model, loaded

    yield saved
    for engine in engines:
        engine.close()


async def test_a_head_over_labels_classifies(saved):
    model, loaded = saved(BertForSequenceClassification, id2label={0: "late", 1: "lost", 2: "other"})
    assert (loaded.tasks, loaded.engine, loaded.pooling.context_length) == ({"classify"}, None, 40)
    assert loaded.pooling.labels == ("late", "lost", "other")
    [found] = await loaded.pooling.classify([(9, 10, 11)])
    expected = model(torch.tensor([[9, 10, 11]])).logits[0].softmax(-1)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize("changes", [{"problem_type": "multi_label_classification"}, {"id2label": {0: "yes"}}])
async def test_labels_that_may_be_true_at_once(saved, changes):
    model, loaded = saved(BertForSequenceClassification, **changes)
    [found] = await loaded.pooling.classify([(9, 10, 11)])
    assert found == pytest.approx(model(torch.tensor([[9, 10, 11]])).logits[0].sigmoid().tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
async def test_another_encoder_embeds_by_the_mean(saved, kind):
    model, loaded = saved(kind)
    assert loaded.tasks == {"embed"}
    [found] = await loaded.pooling.embed([(9, 10, 11)])
    hidden = model.base_model(torch.tensor([[9, 10, 11]])).last_hidden_state[0]
    assert found == pytest.approx(hidden.mean(0).tolist(), abs=1e-5)


async def test_a_text_as_long_as_roberta_counts_positions(tokenizer):
    """Its first position is the one behind that of padding."""
    config = RobertaConfig(**BERT, vocab_size=len(tokenizer), max_position_embeddings=42, pad_token_id=1)
    pooling = pooling_over(RobertaModel(config).eval(), tokenizer, PoolingOptions(pad_id=1)).pooling
    assert pooling.context_length == 40
    [found] = await pooling.embed([(9,) * 40])
    assert len(found) == 16
    pooling.close()


def modules(*kinds):
    places = {"Transformer": "", "Pooling": "1_Pooling"}
    return [{"type": f"sentence_transformers.models.{kind}", "path": places.get(kind, kind)} for kind in kinds]


async def test_sentence_transformers_say_how(saved):
    files = {
        "modules.json": modules("Transformer", "Pooling", "Normalize"),
        "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    }
    model, loaded = saved(BertModel, files)
    [found] = await loaded.pooling.embed([(9, 10, 11)])
    first = model(torch.tensor([[9, 10, 11]])).last_hidden_state[0, 0]
    assert found == pytest.approx(torch.nn.functional.normalize(first, dim=0).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"modules.json": modules("Transformer", "Dense")}, "a module `Dense`"),
        ({"modules.json": modules("Pooling"), "1_Pooling/config.json": {}}, "must choose one of"),
        (
            {"modules.json": modules("Pooling"), "1_Pooling/config.json": {"pooling_mode_weightedmean_tokens": True}},
            "must choose one of",
        ),
        ({"modules.json": [{"type": "a.Pooling", "path": "../elsewhere"}]}, "leads out of the model directory"),
    ],
)
def test_what_cannot_be_done_as_written_is_refused(saved, files, words):
    with pytest.raises(ModelDirectoryError, match=words):
        saved(BertModel, files)


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "generate"),
        ({"architectures": ["GPT2LMHeadModel"]}, "generate"),
        ({"model_type": "llama"}, "generate"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "classify"),
        ({"architectures": ["RobertaModel"]}, "embed"),
    ],
)
def test_the_architecture_says_what_for(tmp_path, config, task):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert task_of(tmp_path) == task


def test_an_encoder_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"is_encoder_decoder": True}))
    with pytest.raises(ModelDirectoryError, match="encoder-decoder"):
        task_of(tmp_path)


def test_vllm_is_given_the_directory_and_what_ends_an_answer(chat_model_dir, tokenizer, monkeypatch):
    """vLLM itself is not here: what would start it is stood in for."""
    started = {}
    monkeypatch.setattr(vllm_engine, "start", lambda path, decode, **options: started.update(path=path, **options))
    loaded = load(ModelDirectory(chat_model_dir, 0), engine=EngineOptions(name="vllm"))
    assert loaded.tasks == {"generate"}
    assert started == {
        **{"path": chat_model_dir, "end_ids": {tokenizer.eos_token_id}},
        **{"context_length": 128, "limits": {}},
    }
    limits = {"max_model_len": 64, "max_num_seqs": 8, "gpu_memory_utilization": 0.5}
    load(ModelDirectory(chat_model_dir, 0), engine=EngineOptions(name="vllm", limits=limits))
    assert (started["context_length"], started["limits"]) == (
        64,
        {"max_num_seqs": 8.0, "gpu_memory_utilization": 0.5},
    )


@pytest.mark.parametrize(
    ("limits", "longest"),
    [
        ({"max_model_len": 64, "kv_tokens": 600, "prefix_tokens": 0, "max_rows": 2}, 64),
        ({"kv_tokens": 600, "prefix_tokens": 0, "long_share": 0.1}, 60),
    ],
)
def test_an_engine_keeps_the_limits_it_is_given(chat_model_dir, limits, longest):
    """Also the one that is a fraction: what long requests have is as long as one of them may be."""
    loaded = load(ModelDirectory(chat_model_dir, 0), engine=EngineOptions(limits=limits))
    assert (loaded.engine.context_length, loaded.engine.load.kv_total) == (longest, 600)
    loaded.engine.close()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_batch_tokens": 64}, "a model that can generate has no limit 'max_batch_tokens'"),
        ({"kv_tokens": 64, "prefix_tokens": 64}, "must leave room in kv_tokens"),
        (
            {"max_model_len": 64, "kv_tokens": 600, "prefix_tokens": 100, "long_share": 0.1},
            r"max_model_len \(64\) is more than the 50 tokens .* kv_tokens \(600\) .* long_share \(0.1\)",
        ),
        ({"max_model_len": 1 << 20}, r"max_model_len \(1048576\) is more than this model can read \(\d+\)"),
    ],
)
def test_limits_that_an_engine_cannot_keep_are_said(chat_model_dir, limits, words):
    with pytest.raises(EngineOptionsError, match=words):
        load(ModelDirectory(chat_model_dir, 0), engine=EngineOptions(limits=limits))


def test_a_model_that_reads_has_limits_of_its_own(saved, tmp_path):
    saved(BertModel)
    loaded = load(ModelDirectory(tmp_path, 0), engine=EngineOptions(limits={"max_model_len": 8, "max_waiting": 3}))
    assert loaded.pooling.context_length == 8
    loaded.pooling.close()
    with pytest.raises(EngineOptionsError, match="more than this model can read"):
        load(ModelDirectory(tmp_path, 0), engine=EngineOptions(limits={"max_model_len": 1 << 20}))
    with pytest.raises(EngineOptionsError, match="no limit 'kv_tokens'"):
        load(ModelDirectory(tmp_path, 0), engine=EngineOptions(limits={"kv_tokens": 8}))


def test_vllm_is_not_asked_for_more_than_the_model_can_read(chat_model_dir):
    options = EngineOptions(name="vllm", limits={"max_model_len": 1 << 20})
    with pytest.raises(EngineOptionsError, match="more than this model can read"):
        load(ModelDirectory(chat_model_dir, 0), engine=options)


def test_vllm_is_asked_for_causal_models_alone(saved, tmp_path):
    saved(BertModel)
    with pytest.raises(ModelDirectoryError, match="holds no causal model"):
        load(ModelDirectory(tmp_path, 0), engine=EngineOptions(name="vllm"))
