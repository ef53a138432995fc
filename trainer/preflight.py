"""Is what a job names really there? Asked when it is submitted, so that a typo costs seconds and not a queue.

Torch-free and quick: first rows of the data, names of the model's files. Hub ids are taken on trust (nothing is
downloaded), and contents are judged only when the job runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from trainer.errors import SpecError, UserError, Violation
from trainer.job import model_form
from trainer.layers import unmatched
from trainer.objective_spec import LAYERED
from trainer.sources import SUFFIXES, columns, missing_columns
from trainer.spec import DistillSpec, FineTuneSpec

_HUB_MODEL = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")

_POSITIONS = ("max_position_embeddings", "n_positions")
"""What families call the number of tokens that they know positions for."""
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")


def check_inputs(spec: FineTuneSpec | DistillSpec, models: Mapping[str, str], awaited: Collection[str] = ()) -> None:
    """SpecError with one violation for each thing that is not there; `models` is registry reference -> directory.

    Models that are `awaited` will be there when the job begins.
    """
    found = [
        *_data_violations(spec),
        *_model_violations(spec, models, awaited),
        *_length_violations(spec, models),
        *_layer_violations(spec, models),
    ]
    if found:
        raise SpecError(found)


def _data_violations(spec: FineTuneSpec | DistillSpec) -> Iterator[Violation]:
    unlabelled = spec.has_written_labels
    yield from _source_violations("spec.data.train", spec.data.train, spec, labelled=not unlabelled)
    if spec.data.eval is not None:
        yield from _source_violations("spec.data.eval", spec.data.eval, spec, labelled=True)
    baseline = spec.evaluate.baseline_settings
    if baseline and baseline.train is not None:
        yield from _source_violations("spec.evaluate.baseline.train", baseline.train, spec, labelled=True)
    elif baseline and unlabelled:
        yield from _baseline_violations(spec)
    if baseline and spec.data.eval is None:
        yield Violation("spec.data.eval", "is missing; a baseline is compared with the student on evaluation data")


def _source_violations(
    path: str, source: str, spec: FineTuneSpec | DistillSpec, *, labelled: bool
) -> Iterator[Violation]:
    if is_relative(source):
        yield Violation(path, f"{source!r} is a relative path, and nobody knows from where; write it from the root on")
        return
    try:
        present = columns(source)
    except UserError as error:
        yield Violation(path, error.message)
        return
    if present is None:
        return
    names = spec.data.columns if path == "spec.data.train" else spec.data.columns.without_teachers()
    for role, sentence in missing_columns(present, names, spec.data.format, labelled=labelled).items():
        yield Violation(f"spec.data.columns.{role}", f"{source}: {sentence}{_remedy(role, spec)}")


def _remedy(role: str, spec: FineTuneSpec | DistillSpec) -> str:
    can_write = role == "completion" and isinstance(spec, DistillSpec) and not spec.has_written_labels
    return ", or let the teacher write completions: objective.seq_kd: true" if can_write else ""


def _baseline_violations(spec: FineTuneSpec | DistillSpec) -> Iterator[Violation]:
    """The baseline learns from `data.train`, which a teacher's job may leave without completions."""
    if any(_source_violations("", spec.data.train, spec, labelled=False)):
        return
    for violation in _source_violations("", spec.data.train, spec, labelled=True):
        mend = "name labelled data in evaluate.baseline.train"
        yield Violation("spec.evaluate.baseline", f"a baseline learns from labels: {violation.message}, or {mend}")


def _model_violations(
    spec: FineTuneSpec | DistillSpec, models: Mapping[str, str], awaited: Collection[str]
) -> Iterator[Violation]:
    named = [("spec.student.model", spec.student.model)]
    if isinstance(spec, DistillSpec):
        named += [(f"spec.teachers[{at}].model", teacher.model) for at, teacher in enumerate(spec.teachers)]
    for path, reference in named:
        if reference is None or reference in awaited:
            continue
        if message := _model_problem(reference, models):
            yield Violation(path, message)


def _length_violations(spec: FineTuneSpec | DistillSpec, models: Mapping[str, str]) -> Iterator[Violation]:
    """Samples may be no longer than what each model has positions for."""
    longest = spec.data.max_length
    positions = _number(spec.student.config or {}, _POSITIONS)
    if positions is not None and positions < longest:
        message = f"{positions} positions are fewer than data.max_length ({longest}); raise them, or lower that"
        yield Violation("spec.student.config.max_position_embeddings", message)
    teachers = spec.teachers if isinstance(spec, DistillSpec) else ()
    for reference in (spec.student.model, *(teacher.model for teacher in teachers)):
        positions = _number(_config(reference, models), _POSITIONS)
        if positions is not None and positions < longest:
            mend = "lower it, or take a model of more positions"
            yield Violation(
                "spec.data.max_length", f"{longest} is more than the {positions} positions of {reference}; {mend}"
            )


def _layer_violations(spec: FineTuneSpec | DistillSpec, models: Mapping[str, str]) -> Iterator[Violation]:
    """Layers that are to go together must be there; what does not say its number is judged when the job runs."""
    if not isinstance(spec, DistillSpec):
        return
    of_student = spec.student.config or _config(spec.student.model, models)
    theirs, ours = _number(_config(spec.teachers[0].model, models), _LAYERS), _number(of_student, _LAYERS)
    if theirs is None or ours is None:
        return
    for at, match in enumerate(spec.objective.intermediate_matches):
        if match.feature in LAYERED and (wrong := unmatched(match, theirs, ours)):
            yield Violation(f"spec.objective.intermediate_matches[{at}].{wrong[0]}", wrong[1])


def _config(reference: str | None, models: Mapping[str, str]) -> Mapping[str, object]:
    """Of a model's directory; nothing where there is none, or where it cannot be read, which others say."""
    if reference is None:
        return {}
    try:
        config = json.loads((Path(models.get(reference, reference)).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _number(config: Mapping[str, object], names: tuple[str, ...]) -> int | None:
    """The first of these settings that a config has; families differ in how they call them."""
    text = config.get("text_config", config)
    found = [text.get(name) for name in names] if isinstance(text, Mapping) else []
    return next((one for one in found if isinstance(one, int)), None)


def is_relative(source: str) -> bool:
    """Whether it means something only from where somebody stands: the cluster stands nowhere."""
    path = Path(source)
    looks_like_path = source.startswith(".") or path.suffix.lower() in SUFFIXES
    return looks_like_path and not source.startswith("~") and not path.is_absolute()


def _model_problem(reference: str, models: Mapping[str, str]) -> str | None:
    form = model_form(reference)
    if form == "registry":
        known = reference in models
        return _directory_problem(Path(models[reference])) if known else f"{reference} is not in the model registry"
    if form == "directory" and is_relative(reference):
        return f"{reference!r} is a relative path, and nobody knows from where; write it from the root on"
    if form == "directory":
        return _directory_problem(Path(reference).expanduser())
    if Path(reference).is_dir():
        return f"{reference!r} reads as a hub id, but is a directory here; write ./{reference} or its full path"
    return None if _HUB_MODEL.match(reference) else f"{reference!r} is no directory, hub id (org/name) or name@alias"


def _directory_problem(path: Path) -> str | None:
    if not path.is_dir():
        return f"there is no directory {path.absolute()}"
    if not (path / "config.json").is_file():
        return f"{path} has no config.json; a model directory is what transformers' save_pretrained writes"
    if not any(path.glob("*.safetensors")):
        if any(next(path.glob(pattern), None) for pattern in _PICKLES):
            return f"{path} holds its weights as a pickle only, which could run code; save them again as safetensors"
        return f"{path} holds no weights (*.safetensors)"
    if not any((path / name).is_file() for name in _TOKENIZERS):
        return f"{path} has no tokenizer; save the tokenizer beside the model"
    return None
