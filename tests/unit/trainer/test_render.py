"""Which tokens of a row are learned, for every format and for templates good and bad."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from trainer.batch import NOT_LEARNED
from trainer.errors import UserError
from trainer.render import Rendered, Renderer, texts
from trainer.spec import DataSpec
from trainer.tokenizer import train_tokenizer

ASK = {"role": "user", "content": "Where is my card?"}
SAY = {"role": "assistant", "content": "On its way."}
CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ m.role + ': ' }}{{ m.content if loop.last else 'gone' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(["Where is my card?", "On its way.\n\n user: assistant: gone"] * 4, 320)


def data(format: str, **columns: str) -> DataSpec:
    return DataSpec.model_validate({"train": "x.jsonl", "format": format, "columns": columns})


def learned(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> str:
    return tokenizer.decode([label for label in rendered.labels if label != NOT_LEARNED])


def test_only_the_assistants_turns_of_a_chat_are_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = Renderer(tokenizer, data("chat")).sample({"messages": [ASK, SAY, ASK, SAY]})
    assert rendered.input_ids == tokenizer.apply_chat_template([ASK, SAY, ASK, SAY])["input_ids"]
    assert learned(tokenizer, rendered) == "On its way.<|end|>" * 2
    assert all(label in (token, NOT_LEARNED) for token, label in zip(rendered.input_ids, rendered.labels, strict=True))


def test_our_marks_in_the_template_agree(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = Renderer(tokenizer, data("chat")).sample({"messages": [ASK, SAY, ASK, SAY]})
    marks = tokenizer.apply_chat_template([ASK, SAY, ASK, SAY], return_dict=True, return_assistant_tokens_mask=True)
    assert [int(label != NOT_LEARNED) for label in rendered.labels] == marks["assistant_masks"]


def test_what_follows_the_end_token_is_not_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHATML
    rendered = Renderer(tokenizer, data("chat")).sample({"messages": [ASK, SAY]})
    assert tokenizer.decode(rendered.input_ids).endswith("On its way.<|end|>\n")
    assert learned(tokenizer, rendered) == "On its way.<|end|>"


def test_an_answer_without_an_end_gets_one(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHATML.replace("<|end|>", "")
    rendered = Renderer(tokenizer, data("chat")).sample({"messages": [ASK, SAY]})
    assert learned(tokenizer, rendered) == "On its way.\n<|end|>"


def test_a_token_that_reaches_over_the_border_is_not_merged(tokenizer: PreTrainedTokenizerBase) -> None:
    """The prompt must be the tokens it is at inference, so an answer that begins with a line break stays apart."""
    tokenizer.chat_template = CHATML
    say = {"role": "assistant", "content": "\nOn its way."}
    assert "Ċ" * 2 in tokenizer.get_vocab()
    renderer = Renderer(tokenizer, data("chat"))
    rendered, question = renderer.sample({"messages": [ASK, say]}), renderer.question({"messages": [ASK, say]})
    assert rendered.input_ids[: len(question.input_ids)] == question.input_ids
    assert learned(tokenizer, rendered) == "\nOn its way.<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(ValueError, match="not prefix-stable"):
        Renderer(tokenizer, data("chat")).sample({"messages": [ASK, SAY]})


def test_what_the_template_refuses_is_said(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="role 'tool' is none of"):
        Renderer(tokenizer, data("chat")).sample({"messages": [{"role": "tool", "content": "x"}, SAY]})


def test_chat_without_a_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        Renderer(tokenizer, data("chat"))


def test_prompt_and_completion_are_a_chat_where_there_is_a_template(tokenizer: PreTrainedTokenizerBase) -> None:
    spec = data("prompt_completion", prompt="text", completion="category")
    as_pair = Renderer(tokenizer, spec).sample({"text": ASK["content"], "category": SAY["content"]})
    assert as_pair == Renderer(tokenizer, data("chat")).sample({"messages": [ASK, SAY]})


def test_prompt_and_completion_follow_each_other_where_there_is_none(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    rendered = Renderer(tokenizer, data("prompt_completion")).sample({"prompt": "Where?", "completion": " Here."})
    assert tokenizer.decode(rendered.input_ids) == "Where? Here.<|end|>"
    assert learned(tokenizer, rendered) == " Here.<|end|>"


def test_all_of_a_text_is_learned_to_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = Renderer(tokenizer, data("text")).sample({"text": "Where is it?"})
    assert learned(tokenizer, rendered) == tokenizer.decode(rendered.input_ids) == "Where is it?<|end|>"


@pytest.mark.parametrize("messages", [[ASK, SAY], [ASK]])
def test_a_question_is_all_before_the_answer(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> None:
    question = Renderer(tokenizer, data("chat")).question({"messages": messages})
    assert tokenizer.decode(question.input_ids) == "<|user|>Where is my card?<|end|><|assistant|>"
    assert (question.text, question.reference) == (ASK["content"], SAY["content"] if len(messages) == 2 else None)


def test_a_given_answer_is_what_the_data_would_have_said(tokenizer: PreTrainedTokenizerBase) -> None:
    renderer = Renderer(tokenizer, data("chat"))
    question = renderer.question({"messages": [ASK]}).input_ids
    said = tokenizer(SAY["content"])["input_ids"]
    assert renderer.answered(question, said, ended=True) == renderer.sample({"messages": [ASK, SAY]})
    assert renderer.answered(question, said, ended=False).input_ids == question + said


@pytest.mark.parametrize(
    ("format", "row", "sentence"),
    [
        ("chat", {"messages": [ASK]}, "no completion"),
        ("chat", {"messages": []}, "no list of messages"),
        ("chat", {"messages": "hello"}, "no list of messages"),
        ("chat", {"messages": [{"role": "user"}]}, "role and a content"),
        ("chat", {"messages": [{"role": "user", "content": ["x"]}]}, "role and a content"),
        ("prompt_completion", {"prompt": "x", "completion": None}, "no completion"),
        ("prompt_completion", {"prompt": "x", "completion": ""}, "no completion"),
        ("prompt_completion", {"prompt": "", "completion": "y"}, "nothing in column 'prompt'"),
        ("text", {"text": None}, "nothing in column 'text'"),
    ],
)
def test_a_row_that_cannot_be_learned_is_said(
    tokenizer: PreTrainedTokenizerBase, format: str, row: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Renderer(tokenizer, data(format)).sample(row)


def test_numbers_are_written_out() -> None:
    spec = data("prompt_completion")
    assert texts({"prompt": 12, "completion": 3.5}, spec) == ["12", "3.5"]


def test_cutting_keeps_labels_beside_their_tokens() -> None:
    cut = Rendered([1, 2, 3, 4], [NOT_LEARNED, NOT_LEARNED, 3, 4]).cut(3)
    assert (cut, cut.num_learned) == (Rendered([1, 2, 3], [NOT_LEARNED, NOT_LEARNED, 3]), 1)
    assert Rendered([1], [1]).num_learned == 0
