"""A teacher's answers are those of the plain model."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from tests.tiny_jobs import TINY_GPT2, TINY_LLAMA
from trainer.batch import collate, empty_batch
from trainer.errors import UserError
from trainer.models import fresh_model, load_model, write_model
from trainer.taps import layers_of
from trainer.teacher import LocalTeacher, TeacherModel
from trainer.tokenizer import load_tokenizer, train_tokenizer
from trainer.wanted import Wanted

SAMPLES = [
    {"sample_id": i, "input_ids": list(range(5 + i, 14 + 3 * i)), "labels": [-100, -100, *range(7 + i, 14 + 3 * i)]}
    for i in range(3)
]


@pytest.fixture(scope="module", params=[TINY_LLAMA, TINY_GPT2], ids=["llama", "gpt2"])
def plain(request, tmp_path_factory):
    """(directory, the plain model)."""
    tokenizer = train_tokenizer(["where is my card"], 300)
    model = fresh_model({**request.param, "initializer_range": 0.3}, tokenizer, 1).eval()
    directory = tmp_path_factory.mktemp("teacher") / "model"
    write_model(directory, model, dict(model.named_parameters()), tokenizer)
    return directory, model


def test_logits_from_hidden_states_and_head_are_the_models(plain):
    directory, model = plain
    teacher = LocalTeacher(TeacherModel(str(directory), dtype="float32"))
    batch = collate([(0, 1), (2,)], SAMPLES, 0)
    hidden = teacher.request(batch, Wanted())().hidden_ND
    logits = hidden @ teacher.head().weight_VD.T
    whole = [model(torch.tensor([sample["input_ids"]])).logits[0, 1:-1] for sample in SAMPLES]
    torch.testing.assert_close(logits, torch.cat(whole), rtol=1e-4, atol=1e-4)
    assert not hidden.requires_grad
    assert not teacher.head().weight_VD.requires_grad


def folded(model):
    """Its logits are folded, which no `Head` describes."""
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, logits: logits.abs())
    return model


def refuses(_model, _hidden):
    raise TypeError("a family that looks at more than hidden states")


def threes(hidden, _num_tokens):
    return [slice(start, start + 3) for start in range(0, len(hidden), 3)] or [slice(0, 0)]


@pytest.mark.parametrize("is_asked_alone", [True, False], ids=["in-pieces", "whole"])
def test_logits_of_an_unknown_head_are_the_models_own(plain, is_asked_alone, monkeypatch):
    """In pieces of three positions, from one pass over the layers, where its head can be asked without its body."""
    directory, model = plain
    monkeypatch.setattr("trainer.teacher.load_model", lambda *where: folded(load_model(*where)))
    monkeypatch.setattr("trainer.teacher.blocks", threes)
    if not is_asked_alone:
        monkeypatch.setattr("trainer.teacher.logits_of_hidden", refuses)
    teacher = TeacherModel(str(directory), dtype="float32")
    passes = []
    layers_of(teacher._root.model)[0].register_forward_pre_hook(lambda *_: passes.append(1))
    batch = collate([(0, 1), (2,)], SAMPLES, 0)
    whole = torch.cat([model(torch.tensor([sample["input_ids"]])).logits[0, 1:-1] for sample in SAMPLES]).abs()
    found = teacher.targets(batch, Wanted("full_logits")).logits_NV
    torch.testing.assert_close(found, whole[:, : found.shape[1]], rtol=1e-4, atol=1e-4)
    assert len(passes) == (1 if is_asked_alone else 2)
    top = teacher.targets(batch, Wanted("topk_logits", top_k=3)).topk
    expected = whole[:, : found.shape[1]].log_softmax(dim=1).gather(1, top.ids_MK.long())
    torch.testing.assert_close(top.log_probs_MK, expected, rtol=1e-4, atol=1e-4)
    assert sum(count for _, count in teacher.score(batch)) == batch.num_targets
    assert teacher.targets(None, Wanted("full_logits")).logits_NV.shape[0] == 0


def test_scores_are_summed_for_each_sample(plain):
    directory, model = plain
    scores = TeacherModel(str(directory), dtype="float32").score(collate([(0, 1), (2,)], SAMPLES, 0))
    for sample, (nll, count) in zip(SAMPLES, scores, strict=True):
        ids = torch.tensor(sample["input_ids"])
        expected = F.cross_entropy(model(ids[None]).logits[0, 1:-1], ids[2:], reduction="sum")
        assert nll == pytest.approx(expected.item(), rel=1e-4)
        assert count == len(ids) - 2


def test_a_teacher_whose_tokenizer_has_more_entries_than_its_head_is_refused(plain, tmp_path):
    directory = shutil.copytree(plain[0], tmp_path / "teacher")
    tokenizer = load_tokenizer(directory)
    tokenizer.add_tokens(["<|one|>", "<|two|>"])
    tokenizer.save_pretrained(directory)
    rows = plain[1].config.vocab_size
    with pytest.raises(UserError, match=f"has {rows} rows of vocabulary for a tokenizer of {rows + 2}") as error:
        TeacherModel(str(directory), dtype="float32")
    assert error.value.reason == "TOKENIZER_MISMATCH"


def test_a_teacher_that_would_mix_up_packed_samples_refuses_those_and_no_others(tmp_path):
    tokenizer = train_tokenizer(["where is my card"], 300)
    model = fresh_model({"model_type": "bloom", "hidden_size": 32, "n_layer": 1, "n_head": 4}, tokenizer, 1)
    write_model(tmp_path / "bloom", model, dict(model.named_parameters()), tokenizer)
    teacher = TeacherModel(str(tmp_path / "bloom"), dtype="float32")
    assert teacher.targets(collate([(0,), (1,)], SAMPLES, 0), Wanted()).hidden_ND is not None
    with pytest.raises(UserError, match=r"bloom.* mixes up samples .*packing_strategy: none"):
        teacher.targets(collate([(0, 1)], SAMPLES, 0), Wanted())


def test_nothing_to_answer(plain):
    teacher = TeacherModel(str(plain[0]), dtype="float32")
    assert teacher.targets(None, Wanted()).hidden_ND.shape[0] == 0
    assert teacher.score(None) == []
    assert teacher.score(empty_batch(0)) == []
    assert teacher.generate([], 5) == []


def test_it_answers_in_the_dtype_that_was_asked(plain):
    teacher = TeacherModel(str(plain[0]), dtype="bfloat16")
    assert teacher.targets(collate([(0,)], SAMPLES, 0), Wanted()).hidden_ND.dtype == torch.bfloat16
    assert teacher.head().weight_VD.dtype == torch.bfloat16
