"""Tokenizers that we train load with plain transformers and change no text; different ones are told apart."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trainer.errors import UserError
from trainer.tokenizer import SPECIAL_TOKENS, load_tokenizer, same_tokenizer, train_tokenizer

TEXTS = ["My card has not arrived yet, where is it?", "How do I top up? grüße, 你好"] * 4
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is my card?"},
    {"role": "assistant", "content": "On its way."},
]


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 320)


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_goes_through_unchanged(trained: PreTrainedTokenizerBase, text: str) -> None:
    if not any(token in text for token in SPECIAL_TOKENS):
        assert trained.decode(trained(text)["input_ids"]) == text


def test_the_size_is_kept_and_special_tokens_come_first(trained: PreTrainedTokenizerBase) -> None:
    assert len(trained) <= 320
    assert [trained.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert (trained.pad_token_id, trained.eos_token_id) == (0, 4)


def test_training_twice_gives_the_same(trained: PreTrainedTokenizerBase) -> None:
    assert train_tokenizer(TEXTS, 320).get_vocab() == trained.get_vocab()


def test_plain_transformers_loads_it_beside_a_model_config(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 320}')
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert loaded(TEXTS[1])["input_ids"] == trained(TEXTS[1])["input_ids"]
        assert loaded.decode(loaded(TEXTS[1])["input_ids"]) == TEXTS[1]
        assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 4)
        assert loaded.apply_chat_template(CHAT) == trained.apply_chat_template(CHAT)


def test_the_chat_template_only_appends(trained: PreTrainedTokenizerBase) -> None:
    rendered = [trained.apply_chat_template(CHAT[:turns], tokenize=False) for turns in range(1, 4)]
    prompt = trained.apply_chat_template(CHAT[:2], tokenize=False, add_generation_prompt=True)
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(rendered))
    assert rendered[2] == prompt + "On its way.<|end|>"


def test_the_chat_template_marks_what_the_assistant_says(trained: PreTrainedTokenizerBase) -> None:
    marked = trained.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    said = [t for t, mine in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if mine]
    assert trained.decode(said) == "On its way.<|end|>"


def test_a_role_that_the_template_does_not_know_is_refused(trained: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="role 'tool' is none of"):
        trained.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_same_ids_are_accepted(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    same_tokenizer(trained, load_tokenizer(tmp_path))


def test_the_first_id_that_differs_is_named(trained: PreTrainedTokenizerBase) -> None:
    other = train_tokenizer(["quite another language"] * 9, 320)
    with pytest.raises(UserError) as caught:
        same_tokenizer(trained, other, names=("big", "small"))
    assert caught.value.reason == "TOKENIZER_MISMATCH"
    theirs = {index: token for token, index in other.get_vocab().items()}
    ours = {index: token for token, index in trained.get_vocab().items()}
    first = next(index for index in range(320) if ours.get(index) != theirs.get(index))
    assert f"id {first} is {ours[first]!r} for big" in str(caught.value)


def test_a_longer_vocabulary_differs_too(trained: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="no token"):
        same_tokenizer(trained, train_tokenizer(TEXTS, 300))


def test_what_is_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.reason == "TOKENIZER_INVALID"


def test_padding_falls_back_to_the_end_token(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    bare = train_tokenizer(TEXTS, 300)
    bare.pad_token = None
    bare.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == "<|end|>"
