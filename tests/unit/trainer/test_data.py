"""Rows are read as they were written, and samples come back from disk as they went."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from trainer.batch import NOT_LEARNED, Sample
from trainer.data import load_rows, rows_fingerprint
from trainer.errors import TrainerError, UserError
from trainer.samples import Prompt, Prompts, Samples, write_prompts, write_samples

ROWS = [{"text": "hi, you", "category": "null"}, {"text": "NA", "category": "007"}]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_csv(path: Path) -> None:
    path.write_text('text,category\n"hi, you",null\nNA,007\n')


def write_csv_with_bom(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + b'text,category\r\n"hi, you",null\r\nNA,007\r\n')


def write_parquet(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.json", write_jsonl),
        ("a.csv", write_csv),
        ("b.CSV", write_csv_with_bom),
        ("a.parquet", write_parquet),
    ],
)
def test_every_form_gives_the_same_rows(tmp_path: Path, name: str, write: Callable[[Path], None]) -> None:
    write(tmp_path / name)
    rows = load_rows(str(tmp_path / name), split="train", cache_dir=tmp_path / "cache")
    assert list(rows) == ROWS


def test_the_library_keeps_its_files_where_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    write_csv(tmp_path / "a.csv")
    load_rows(str(tmp_path / "a.csv"), split="train", cache_dir=tmp_path / "cache")
    assert (tmp_path / "cache").is_dir()
    assert not home.exists()


def test_messages_come_back_as_messages(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 1}]},
        {"messages": [{"role": "user", "content": "z"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = load_rows(str(tmp_path / "a.jsonl"), split="train", cache_dir=tmp_path / "cache")
    stripped = [[{k: v for k, v in m.items() if v is not None} for m in row["messages"]] for row in read]
    assert stripped == [row["messages"] for row in rows]


def test_a_broken_line_far_down_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n' * 100 + '{"text":\n')
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read") as caught:
        load_rows(str(path), split="train", cache_dir=tmp_path / "cache")
    assert caught.value.reason == "DATA_INVALID"


class Hub:
    """Stands in for `datasets.load_dataset` of a hub id."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __call__(self, name: str, **options: object) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_hub_splits_and_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["card_arrival", "top_up"])}
    )
    splits = {
        name: datasets.Dataset.from_dict({"text": [name], "label": [1]}, features=features)
        for name in ("train", "test")
    }
    monkeypatch.setattr(datasets, "load_dataset", Hub(splits))
    for split, name in (("train", "train"), ("eval", "test")):
        rows = load_rows("org/banking", split=split, cache_dir=tmp_path)  # type: ignore[arg-type]
        assert list(rows) == [{"text": name, "label": "top_up"}]


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (ConnectionError("no route"), TrainerError, "HUB_UNREACHABLE"),
        (datasets.exceptions.DatasetNotFoundError("no such"), UserError, "DATA_MISSING"),
        ({"validation": []}, UserError, "DATA_MISSING"),
    ],
)
def test_a_hub_out_of_reach_is_not_a_wrong_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: object, kind: type[TrainerError], reason: str
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub(answer))
    with pytest.raises(TrainerError) as caught:
        load_rows("org/banking", split="train", cache_dir=tmp_path)
    assert (type(caught.value), caught.value.reason) == (kind, reason)


def test_the_fingerprint_is_of_content_and_order() -> None:
    assert rows_fingerprint(ROWS) == rows_fingerprint([dict(reversed(list(row.items()))) for row in ROWS])
    assert rows_fingerprint(ROWS) != rows_fingerprint(ROWS[::-1])
    assert rows_fingerprint(ROWS) != rows_fingerprint(ROWS[:1])


def test_samples_come_back_from_disk(tmp_path: Path) -> None:
    samples = [
        Sample(
            sample_id=3 * at,
            input_ids=list(range(at % 7 + 1)),
            labels=[NOT_LEARNED, *range(9)][: at % 7 + 1],
            teacher=at % 3,
        )
        for at in range(2500)
    ]
    write_samples(tmp_path, iter(samples))
    read = Samples(tmp_path)
    assert list(read) == samples
    assert read.lengths == tuple(len(sample["input_ids"]) for sample in samples)
    assert read.num_targets == tuple(length - 1 for length in read.lengths)
    assert (read[-1], read[10:12]) == (samples[-1], samples[10:12])


def test_prompts_come_back_from_disk_and_may_be_none(tmp_path: Path) -> None:
    prompts = [Prompt(5, (1, 2), "hi", "yo"), Prompt(9, (3,), "ho", None)]
    write_prompts(tmp_path / "some", iter(prompts))
    write_prompts(tmp_path / "none", iter(()))
    assert list(Prompts(tmp_path / "some")) == prompts
    assert list(Prompts(tmp_path / "none")) == []
