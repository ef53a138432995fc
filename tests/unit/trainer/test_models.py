"""Models in and out: what is refused and why, and that what is written is what plain transformers reads."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CohereConfig, Gemma2Config, GraniteConfig

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA, fine_tune_job
from trainer.atomic import sha256_file
from trainer.batch import collate
from trainer.errors import TrainerError, UserError
from trainer.hub import unreadable
from trainer.models import (
    check_head,
    checkpoint_activations,
    fresh_model,
    has_plain_head,
    hidden_at_rows,
    keeps_samples_apart,
    load_model,
    split,
    write_model,
)
from trainer.publishing import publish_model
from trainer.tokenizer import load_tokenizer, train_tokenizer


def caused(error, cause):
    error.__cause__ = cause
    return error


def hub_answers(status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError("the hub's words", response=response)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["where is my card", "top up my account"], 300)


def saved(model, tokenizer, directory):
    write_model(directory, model, dict(model.named_parameters()), tokenizer)
    return directory


@pytest.mark.parametrize(
    "config", [TINY_LLAMA, {**TINY_LLAMA, "tie_word_embeddings": True}, TINY_GPT2], ids=["llama", "tied", "gpt2"]
)
def test_a_written_model_is_what_plain_transformers_reads(config, tokenizer, tmp_path):
    model = fresh_model(config, tokenizer, seed=3).eval()
    saved(model, tokenizer, tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([[7, 8, 9]])
    assert torch.equal(read(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == tokenizer.get_vocab()
    assert torch.equal(load_model(str(tmp_path / "model"), torch.float32)(ids).logits, model(ids).logits)


def test_a_fresh_model_is_a_function_of_config_and_seed_alone(tokenizer):
    first, again, other = (fresh_model(TINY_LLAMA, tokenizer, seed) for seed in (1, 1, 2))
    weights = [model.get_output_embeddings().weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.config.eos_token_id == tokenizer.eos_token_id
    assert first.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "lama"}, "'lama'"),
        ({"hiden_size": 8}, "did you mean 'hidden_size'"),
        ({"hidden_size": 30}, "no model can be made"),
        ({"num_attention_heads": 0}, "no model can be made"),
    ],
)
def test_a_config_that_makes_no_model_is_the_users_error(changes, words, tokenizer):
    with pytest.raises(UserError, match=words) as error:
        fresh_model({**TINY_LLAMA, **changes}, tokenizer, 0)
    assert error.value.reason == "MODEL_INVALID"


def test_a_directory_without_config_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json") as error:
        load_model(str(tmp_path), torch.float32)
    assert error.value.reason == "MODEL_INVALID"


def test_pickled_weights_alone_are_refused_unread(tokenizer, tmp_path):
    directory = saved(fresh_model(TINY_LLAMA, tokenizer, 0), tokenizer, tmp_path / "model")
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(UserError, match=r"pytorch_model\.bin") as error:
        load_model(str(directory), torch.float32)
    assert error.value.reason == "UNSAFE_MODEL_FILE"


def test_torn_weights_are_refused(tokenizer, tmp_path):
    directory = saved(fresh_model(TINY_LLAMA, tokenizer, 0), tokenizer, tmp_path / "model")
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(directory), torch.float32)


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(tokenizer, tmp_path):
    directory = saved(fresh_model(TINY_LLAMA, tokenizer, 0), tokenizer, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        load_model(str(directory), torch.float32)


def test_weights_of_another_shape_are_refused_by_name(tokenizer, tmp_path):
    directory = saved(fresh_model(TINY_LLAMA, tokenizer, 0), tokenizer, tmp_path / "model")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(3)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"another shape: .*model\.norm\.weight") as error:
        load_model(str(directory), torch.float32)
    assert error.value.reason == "MODEL_INVALID"


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (OSError("no such model"), UserError, "MODEL_INVALID"),
        (FileNotFoundError(2, "No such file"), UserError, "MODEL_INVALID"),
        (OSError(5, "Input/output error"), TrainerError, "STORAGE_FAILED"),
        (caused(OSError("offline"), LocalEntryNotFoundError("no network")), TrainerError, "HUB_UNREACHABLE"),
        (caused(OSError("busy"), hub_answers(503)), TrainerError, "HUB_UNREACHABLE"),
        (caused(OSError("not found"), hub_answers(404)), UserError, "MODEL_INVALID"),
    ],
)
def test_a_hub_or_disk_that_fails_is_not_a_wrong_job(error, kind, reason):
    found = unreadable("org/model", "MODEL_INVALID", "cannot be loaded", error)
    assert (type(found), found.reason) == (kind, reason)
    assert "org/model" in str(found)


def test_a_config_that_asks_for_code_gets_none(tokenizer, tmp_path):
    directory = saved(fresh_model(TINY_LLAMA, tokenizer, 0), tokenizer, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "evil.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(UserError) as error:
        load_model(str(directory), torch.float32)
    assert error.value.reason == "MODEL_INVALID"


SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
RECURRENT = {**SMALL, "intermediate_size": 32, "num_hidden_layers": 3}
HYBRID = {"mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        CohereConfig(**SMALL, logit_scale=0.25),
        Gemma2Config(**SMALL, head_dim=8, num_key_value_heads=2, final_logit_softcapping=0.5, initializer_range=1.0),
        GraniteConfig(**SMALL, logits_scaling=4.0),
        AutoConfig.for_model("hyperclovax", **SMALL, logits_scaling=4.0),
        AutoConfig.for_model("recurrent_gemma", **RECURRENT, logits_soft_cap=0.5, w_init_variance_scale=9.0),
        AutoConfig.for_model("falcon_h1", **SMALL, **HYBRID, lm_head_multiplier=0.25),
    ],
    ids=["scaled", "capped", "divided", "multiplied", "recurrent", "hybrid"],
)
def test_a_model_that_scales_or_caps_its_logits_is_understood(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    assert has_plain_head(model)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        hidden = split(model).body(input_ids=ids)[0][0]
        torch.testing.assert_close(split(model).head.logits_RV(hidden), model(ids).logits[0])


def test_a_model_that_does_more_than_that_is_refused(tokenizer):
    model = fresh_model(TINY_LLAMA, tokenizer, 0)
    model.lm_head.register_forward_hook(lambda _module, _args, logits: logits.abs())
    with pytest.raises(UserError) as error:
        check_head(model, "folded")
    assert error.value.reason == "MODEL_UNSUPPORTED"


@pytest.mark.parametrize("config", [TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
def test_hidden_states_do_not_depend_on_padding_or_packing(config, tokenizer):
    model = fresh_model(config, tokenizer, 0).eval()
    samples = [
        {"sample_id": i, "input_ids": list(range(5 + i, 14 + 3 * i)), "labels": [-100, *range(6 + i, 14 + 3 * i)]}
        for i in range(3)
    ]
    apart = torch.cat([hidden_at_rows(model, collate([(i,)], samples, 0)) for i in range(3)])
    padded = hidden_at_rows(model, collate([(0,), (1,), (2,)], samples, 0))
    packed = hidden_at_rows(model, collate([(0, 1, 2)], samples, 0))
    torch.testing.assert_close(padded, apart, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
def test_checkpointed_activations_are_computed_again_to_the_same_gradient(config, tokenizer):
    batch = collate([(0,)], [{"sample_id": 0, "input_ids": list(range(5, 25)), "labels": list(range(5, 25))}], 0)
    calls, gradients = [], []
    for checkpointed in (False, True):
        model = fresh_model(config, tokenizer, 0).train()
        if checkpointed:
            checkpoint_activations(model, "student")
        mlps = [module for name, module in model.named_modules() if name.endswith(".mlp")]
        count = []
        for mlp in mlps:
            mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        torch.manual_seed(1)
        hidden_at_rows(model, batch).square().sum().backward()
        calls.append(len(count) / len(mlps))
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    assert calls == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(one, gradients[1][name]) for name, one in gradients[0].items())


def test_a_family_that_cannot_compute_its_activations_again_is_refused(tokenizer):
    model = fresh_model({"model_type": "openai-gpt", "n_embd": 16, "n_layer": 1, "n_head": 2}, tokenizer, 0)
    with pytest.raises(UserError, match=r"openai-gpt\) cannot .* training.gradient_checkpointing: false") as error:
        checkpoint_activations(model, "the student")
    assert error.value.reason == "MODEL_UNSUPPORTED"


MIXERS = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
}


@pytest.mark.parametrize("config", [TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
def test_families_that_take_positions_keep_packed_samples_apart(config, tokenizer):
    assert keeps_samples_apart(fresh_model(config, tokenizer, 0))
    assert keeps_samples_apart(fresh_model(config, tokenizer, 0).bfloat16())


@pytest.mark.parametrize("family", MIXERS)
def test_families_that_mix_packed_samples_up_are_known(family, tokenizer):
    assert not keeps_samples_apart(fresh_model({"model_type": family, **MIXERS[family]}, tokenizer, 0))


def test_the_head_of_a_tied_model_is_its_embedding(tokenizer):
    model = fresh_model({**TINY_LLAMA, "tie_word_embeddings": True}, tokenizer, 0)
    assert split(model).head.weight_VD is model.get_input_embeddings().weight


def test_a_written_model_ends_where_its_new_tokenizer_does_and_where_it_ended_before(tokenizer, tmp_path):
    model = fresh_model(TINY_LLAMA, tokenizer, 0)
    before = tokenizer.convert_tokens_to_ids("<|system|>")
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = before, 9
    saved(model, tokenizer, tmp_path / "model")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for config in (read.config, read.generation_config):
        assert config.eos_token_id == [tokenizer.eos_token_id, before]
        assert config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == before, "the original stays as it is"


def test_published_model_carries_its_lineage(tokenizer, tmp_path):
    ctx = fine_tune_job(tmp_path / "bot-aaaaaaaa")
    model_dir = saved(fresh_model(TINY_LLAMA, tokenizer, 0), tokenizer, tmp_path / "model")
    target = tmp_path / "models" / "bot" / ctx.uid
    for _ in range(2):  # again after a restart: the same
        digest = publish_model(ctx, model_dir, target, {"name": "bot"})
    manifest = json.loads((target / "athanor.json").read_text())
    assert digest == sha256_file(target / "athanor.json")
    assert (manifest["job"], manifest["kind"], manifest["name"]) == ("bot-aaaaaaaa", "FineTune", "bot")
    assert manifest["spec"]["training"]["max_steps"] == 6
    assert manifest["files"]["model.safetensors"] == sha256_file(target / "model.safetensors")
    assert set(manifest["files"]) == {path.name for path in target.iterdir()} - {"athanor.json"}
    assert load_tokenizer(target).eos_token_id == tokenizer.eos_token_id
