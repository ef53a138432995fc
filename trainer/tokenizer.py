"""Tokenizers: loaded, trained on a job's own data, and compared, so that teacher and student speak of the same ids.

What we train is an ordinary `tokenizer.json` with a chat template: plain transformers loads it with no code of ours.
Tokenizers with different ids are refused here, never aligned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.errors import UserError
from trainer.hub import unreadable

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
SPECIAL_TOKENS = (PAD, *ROLES, END)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{ raise_exception("role '" ~ message['role'] ~ "' is none of system, user, assistant") }}
{%- endif -%}
{{ '<|' + message['role'] + '|>' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}
{%- else -%}
{{ message['content'] + '<|end|>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most `vocab_size` entries, special tokens included: any text goes through it unchanged."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        padding_side="right",
        chat_template=CHAT_TEMPLATE,
    )


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """From a directory or the hub; it has an end token, and a padding token (the end token where it brings none)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise unreadable(str(source), "TOKENIZER_INVALID", "gives no tokenizer", error) from error
    if tokenizer.eos_token_id is None:
        raise UserError(
            "TOKENIZER_INVALID", f"the tokenizer of {source} has no end token (eos_token); set one and save"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def same_tokenizer(
    teacher: PreTrainedTokenizerBase,
    student: PreTrainedTokenizerBase,
    *,
    names: tuple[str, str] = ("teacher", "student"),
) -> None:
    """UserError TOKENIZER_MISMATCH unless every id means the same token in both.

    Rows that a model's embedding has beyond its tokenizer do not count, and neither does which token plays the end:
    the job works with the teacher's tokenizer and publishes it.
    """
    difference = _first_difference(teacher.get_vocab(), student.get_vocab(), names)
    if difference:
        mend = "take a student of the teacher's family, or give it as config: it then uses the teacher's tokenizer"
        raise UserError(
            "TOKENIZER_MISMATCH", f"the tokenizers of {names[0]} and {names[1]} differ: {difference}; {mend}"
        )


def _first_difference(teacher: Mapping[str, int], student: Mapping[str, int], names: tuple[str, str]) -> str | None:
    ours, theirs = ({index: token for token, index in vocab.items()} for vocab in (teacher, student))
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) != theirs.get(index):
            return f"id {index} is {_shown(ours, index)} for {names[0]} and {_shown(theirs, index)} for {names[1]}"
    return None


def _shown(vocab: Mapping[int, str], index: int) -> str:
    return repr(vocab[index]) if index in vocab else "no token"
