"""From a job file to what the loop reads: a tokenizer and tokenised data on disk, made once for each job.

`prepare` and `finish_labels` are idempotent and leave either nothing or all: a later attempt finds what an earlier one
made, even if the source has changed since. They run in one process before the workers start, which `Prepared.open`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from trainer.atomic import replace_directory, write_json
from trainer.batch import Sample
from trainer.data import Split, load_rows, rows_fingerprint
from trainer.errors import TrainerError, UserError
from trainer.job import JobContext
from trainer.labels import read_labels
from trainer.order import choose
from trainer.prepared import Prepared
from trainer.render import Rendered, Renderer, texts
from trainer.samples import Prompt, write_prompts, write_samples
from trainer.sources import missing_columns
from trainer.spec import DistillSpec, FineTuneSpec, TokenizerSpec
from trainer.tokenizer import load_tokenizer, same_tokenizer, train_tokenizer
from trainer.violations import did_you_mean

_LAYOUT = 3
"""Raised when what lies in `prepared/` changes its form, so that an older one is made anew."""


@dataclass
class Counts:
    """What became of the rows of one set."""

    rows: int = 0
    samples: int = 0
    cut: int = 0
    """Longer than `max_length`, cut at the end."""
    dropped: int = 0
    """Nothing to learn was left after the cut."""


@dataclass(frozen=True)
class Source:
    """Rows of one set, with the place of each in its source."""

    name: str
    """As people know it, for messages."""
    rows: datasets.Dataset
    indices: Sequence[int]

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return ((index, self.rows[index]) for index in self.indices)

    def row_error(self, index: int, problem: ValueError) -> UserError:
        return UserError("DATA_INVALID", f"{self.name}: row {index + 1} {problem}")


def prepare(ctx: JobContext) -> Prepared:
    """Makes `prepared/`, or finds it made for the same settings."""
    request = _request(ctx)
    if _recorded_request(ctx.prepared_dir) != request:
        building = ctx.job_dir / ".prepared"
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(ctx.labels_dir, ignore_errors=True)
        _Preparation(ctx, building).run(request)
        shutil.rmtree(building / "cache", ignore_errors=True)
        replace_directory(building, ctx.prepared_dir)
    return Prepared.open(ctx)


def finish_labels(ctx: JobContext) -> Prepared:
    """Builds the student's training set from prompts and the completions in `labels/part-*.jsonl`."""
    request, done = _request(ctx), ctx.labels_dir / "done.json"
    if _recorded_request(ctx.labels_dir) != request:
        counts = Counts()
        building = ctx.job_dir / ".train"
        shutil.rmtree(building, ignore_errors=True)
        write_samples(building, _labelled(ctx, counts))
        replace_directory(building, ctx.prepared_dir / "train")
        write_json(done, {"request": request, "counts": asdict(counts)})
    return Prepared.open(ctx)


def _labelled(ctx: JobContext, counts: Counts) -> Iterator[Sample]:
    prepared, labels = Prepared.open(ctx), read_labels(ctx.labels_dir)
    renderer = Renderer(prepared.tokenizer, ctx.spec.data)
    missing = [prompt.sample_id for prompt in prepared.prompts if prompt.sample_id not in labels]
    if missing:
        raise TrainerError(
            "LABELS_MISSING", f"{len(missing)} prompts have no completion yet, the first is {missing[0]}"
        )
    for prompt in prepared.prompts:
        answer, ended = labels[prompt.sample_id]
        rendered = renderer.answered(prompt.input_ids, answer, ended=ended)
        yield from _fitted(prompt.sample_id, rendered, ctx.spec.data.max_length, counts)


def _recorded_request(directory: Path) -> str | None:
    path = directory / "done.json"
    return json.loads(path.read_text())["request"] if path.is_file() else None


def _request(ctx: JobContext) -> str:
    """sha256 of the settings that shape `prepared/`."""
    spec = ctx.spec
    shape = {
        "layout": _LAYOUT,
        "kind": ctx.kind,
        "data": spec.data.model_dump(mode="json"),
        "student": ctx.resolve_model(spec.student.model) if spec.student.model else None,
        "tokenizer": spec.student.tokenizer.model_dump() if spec.student.tokenizer else None,
        "teachers": ctx.teachers,
        "teacher_names": spec.teacher_names if isinstance(spec, DistillSpec) else (),
        "written_labels": _label_settings(spec),
        "baseline": spec.evaluate.baseline_settings.model_dump() if spec.evaluate.baseline_settings else None,
        "eval_samples": spec.evaluate.max_samples,
        "seed": spec.training.seed,
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()


def _label_settings(spec: FineTuneSpec | DistillSpec) -> dict[str, int | None] | None:
    """What shapes the completions that the teacher writes; None where it writes none."""
    if isinstance(spec, DistillSpec) and spec.objective.seq_kd:
        return {"max_new_tokens": spec.objective.seq_kd_max_new_tokens}
    return None


def _fitted(
    sample_id: int, rendered: Rendered, max_length: int, counts: Counts, *, teacher: int = 0
) -> Iterator[Sample]:
    """The sample cut to `max_length`, or nothing if nothing to learn is left."""
    counts.rows += 1
    whole, rendered = rendered, rendered.cut(max_length)
    if rendered.num_learned == 0:
        counts.dropped += 1
        return
    counts.cut += len(whole.input_ids) > max_length
    counts.samples += 1
    yield Sample(sample_id=sample_id, input_ids=rendered.input_ids, labels=rendered.labels, teacher=teacher)


class _Preparation:
    """One run of `prepare`: reads the sources, settles the tokenizer, writes each set."""

    def __init__(self, ctx: JobContext, directory: Path) -> None:
        self._ctx = ctx
        self._data = ctx.spec.data
        self._directory = directory
        self._counts: dict[str, Counts] = {}
        self._fingerprints: dict[str, str] = {}

    def run(self, request: str) -> None:
        train = self._source(self._data.train, "train", "train", wanted=self._data.max_samples)
        tokenizer = self._tokenizer(train)
        tokenizer.save_pretrained(self._directory / "tokenizer")
        renderer = Renderer(tokenizer, self._data)
        self._write_train(train, renderer)
        self._write_baseline(renderer)
        self._write_eval(renderer)
        record = {
            "request": request,
            "counts": {name: asdict(counts) for name, counts in self._counts.items()},
            "data_fingerprint": self._fingerprints,
        }
        write_json(self._directory / "done.json", record)

    def _source(self, source: str, split: Split, name: str, *, wanted: int | None) -> Source:
        """The rows to use of one source: of evaluation data the first ones, else drawn by the seed."""
        rows = load_rows(source, split=split, cache_dir=self._directory / "cache")
        self._check_columns(source, rows, name, labelled=name != "train" or not self._ctx.has_written_labels)
        count = len(rows)
        first = range(min(count, wanted or count))
        drawn = first if split == "eval" else choose(count, wanted, seed=self._ctx.spec.training.seed)
        found = Source(source, rows, drawn)
        self._fingerprints[name] = rows_fingerprint(row for _, row in found)
        return found

    def _check_columns(self, source: str, rows: datasets.Dataset, name: str, *, labelled: bool) -> None:
        if not len(rows):
            raise UserError("DATA_EMPTY", f"{source} holds no rows")
        present = tuple(rows.column_names)
        needed = self._data.columns if name == "train" else self._data.columns.without_teachers()
        for sentence in missing_columns(present, needed, self._data.format, labelled=labelled).values():
            raise UserError("COLUMN_MISSING", f"{source}: {sentence}")

    def _tokenizer(self, train: Source) -> PreTrainedTokenizerBase:
        """The teacher's; without one the student model's; without that one trained on the data."""
        ctx, student = self._ctx, self._ctx.spec.student
        if isinstance(ctx.spec, DistillSpec) and ctx.teacher:
            tokenizer = load_tokenizer(ctx.teacher)
            self._check_tokenizers(tokenizer, ctx.spec)
            return tokenizer
        if student.model:
            return load_tokenizer(ctx.resolve_model(student.model))
        vocab_size = (student.tokenizer or TokenizerSpec()).vocab_size
        return train_tokenizer((text for row in self._readable(train) for text in row), vocab_size)

    def _check_tokenizers(self, tokenizer: PreTrainedTokenizerBase, spec: DistillSpec) -> None:
        """All teachers and the student read and write the same token ids as the first teacher."""
        others = [teacher.model for teacher in spec.teachers[1:]] + [name for name in [spec.student.model] if name]
        for name in dict.fromkeys(others):
            theirs = load_tokenizer(self._ctx.resolve_model(name))
            same_tokenizer(tokenizer, theirs, names=(spec.teachers[0].model, name))

    def _readable(self, source: Source) -> Iterator[list[str]]:
        for index, row in source:
            try:
                yield texts(row, self._data)
            except ValueError as error:
                raise source.row_error(index, error) from error

    def _write_train(self, train: Source, renderer: Renderer) -> None:
        written = self._ctx.has_written_labels
        self._counts["train"] = Counts()
        room = self._data.max_length - 1
        asked = self._prompts(train, renderer) if written else iter(())
        write_prompts(self._directory / "prompts", self._with_room(asked, room, self._counts["train"]))
        if not written:
            self._write_samples("train", train, renderer, is_routed=self._data.columns.teacher_key is not None)

    def _with_room(self, prompts: Iterator[Prompt], room: int, counts: Counts) -> Iterator[Prompt]:
        """Prompts that leave room for an answer."""
        for prompt in prompts:
            counts.rows += 1
            if len(prompt.input_ids) > room:
                counts.dropped += 1
            else:
                counts.samples += 1
                yield prompt
        if counts.rows and not counts.samples:
            raise self._nothing_left("train", counts)

    def _write_baseline(self, renderer: Renderer) -> None:
        settings = self._ctx.spec.evaluate.baseline_settings
        if settings:
            source = self._source(settings.train or self._data.train, "train", "baseline", wanted=settings.max_samples)
            self._write_samples("baseline", source, renderer)

    def _write_eval(self, renderer: Renderer) -> None:
        if self._data.eval is None:
            write_samples(self._directory / "eval", iter(()))
            write_prompts(self._directory / "eval_prompts", iter(()))
            return
        source = self._source(self._data.eval, "eval", "eval", wanted=self._ctx.spec.evaluate.max_samples)
        self._write_samples("eval", source, renderer)
        questions = self._prompts(source, renderer) if self._data.format != "text" else iter(())
        write_prompts(self._directory / "eval_prompts", questions)

    def _write_samples(self, name: str, source: Source, renderer: Renderer, *, is_routed: bool = False) -> None:
        counts = self._counts[name] = Counts()
        write_samples(self._directory / name, self._samples(source, renderer, counts, is_routed))
        if not counts.samples:
            raise self._nothing_left(name, counts)

    def _nothing_left(self, name: str, counts: Counts) -> UserError:
        rule = f"within data.max_length ({self._data.max_length} tokens); raise it"
        return UserError("DATA_EMPTY", f"none of the {counts.rows} rows of {name} has anything to learn {rule}")

    def _samples(self, source: Source, renderer: Renderer, counts: Counts, is_routed: bool) -> Iterator[Sample]:
        for index, row in source:
            try:
                rendered = renderer.sample(row)
                teacher = self._teacher_of(row) if is_routed else 0
            except ValueError as error:
                raise source.row_error(index, error) from error
            yield from _fitted(index, rendered, self._data.max_length, counts, teacher=teacher)

    def _teacher_of(self, row: Mapping[str, Any]) -> int:
        """The place of the teacher that the row names."""
        assert isinstance(self._ctx.spec, DistillSpec)
        names, column = self._ctx.spec.teacher_names, str(self._data.columns.teacher_key)
        if row[column] not in names:
            hint = did_you_mean(str(row[column]), list(names))
            raise ValueError(f"column {column} names the teacher {row[column]!r}, not one of {', '.join(names)}{hint}")
        return names.index(row[column])

    def _prompts(self, source: Source, renderer: Renderer) -> Iterator[Prompt]:
        for index, row in source:
            try:
                question = renderer.question(row)
            except ValueError as error:
                raise source.row_error(index, error) from error
            yield Prompt(index, tuple(question.input_ids), question.text, question.reference)
