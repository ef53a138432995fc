"""What the docs say in the words of the code: job-spec.md, cli.md, settings.md, the state diagram, the list of files.

`--check` compares and names what is stale. Loads no torch, starts nothing.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402

from cluster.lifecycle import mermaid  # noqa: E402
from scripts.command_page import command_page  # noqa: E402
from scripts.reading_list import reading_list  # noqa: E402
from scripts.settings_page import settings_page  # noqa: E402
from trainer import spec as job_file  # noqa: E402

JOB_SPEC = Path("docs/job-spec.md")
COMMANDS = Path("docs/cli.md")
SETTINGS = Path("docs/settings.md")
ARCHITECTURE = Path("docs/architecture.md")
README = Path("README.md")
LIMITS = {"minimum": "≥ ", "exclusiveMinimum": "> ", "maximum": "≤ ", "exclusiveMaximum": "< ", "pattern": "matches "}
COUNTS = {"minItems": "at least {} of them", "maxItems": "at most {} of them"}
Schema = Mapping[str, Any]

INTRODUCTION = f"""\
<!-- generated from trainer/spec.py by `make docs`; do not edit -->
# The job file

One YAML document per job. `athanor job submit -f job.yaml` sends it, `athanor job schema` prints the JSON Schema of
this page. Unknown keys are errors. A field without a default must be given.

```yaml
apiVersion: {job_file.API_VERSION}
kind: FineTune            # or Distill
metadata: {{name: my-job}}
spec: {{...}}               # FineTuneSpec or DistillSpec, below
```

A **model** is named in one of three forms: a directory, a hub id (`org/name`), or a registry reference
(`name@alias`, `name@3`). **Data** is a `.jsonl`, `.csv` or `.parquet` file, or a hub id.
"""


def referenced(schema: Schema) -> Iterator[str]:
    """Names of the models that a field's schema mentions."""
    if "$ref" in schema:
        yield schema["$ref"].rsplit("/", 1)[1]
    for part in (*schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from referenced(part)
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), Mapping):
            yield from referenced(schema[inner])


def type_words(schema: Schema) -> str:
    """The type of a field in words for a table cell."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(type_words(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "const" in schema or "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "prefixItems" in schema:
        return f"[{', '.join(type_words(part) for part in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of {type_words(schema['items'])}"
    word = str(schema.get("type", "anything"))
    return "mapping" if word == "object" else word


def limits(schema: Schema) -> str:
    """Bounds of a field, those of its alternatives included."""
    parts = [schema, *schema.get("anyOf", ())]
    ranges = [f"{sign}{_code(part[key])}" for part in parts for key, sign in LIMITS.items() if key in part]
    counts = [words.format(part[key]) for part in parts for key, words in COUNTS.items() if key in part]
    return ", ".join(ranges + counts)


def _code(value: object) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int | float) else f"`{value}`"


def default_words(name: str, owner: Schema) -> str:
    """The default as it would be written in the job file."""
    schema = owner["properties"][name]
    if name in owner.get("required", ()):
        return "**required**"
    if schema.get("default") is None:
        return "–"
    if isinstance(schema["default"], dict):
        return "its own defaults" if schema["default"] else "`{}`"
    return f"`{json.dumps(schema['default'])}`"


def section(name: str, schema: Schema, told: Set[str] = frozenset()) -> str:
    """One model as a heading, its sentence and a table of its fields, without those `told` before."""
    rows = [
        f"| `{field}` | {type_words(part)} | {limits(part)} | {default_words(field, schema)} | {_cell(part)} |"
        for field, part in schema.get("properties", {}).items()
        if field not in told
    ]
    words = [schema.get("description", ""), "Everything of [FineTuneSpec](#finetunespec), and:" if told else ""]
    head = ["| key | type | bounds | default | |", "|---|---|---|---|---|"]
    return "\n\n".join([f"## {name}", *filter(None, words), "\n".join([*head, *rows])]) + "\n"


def _cell(schema: Schema) -> str:
    return " ".join(schema.get("description", "").split()).replace("|", "\\|")


def reachable(model: type[BaseModel]) -> Iterator[tuple[str, Schema]]:
    """The model's own schema, then those it mentions, in the order of mention."""
    whole = model.model_json_schema()
    definitions = whole.pop("$defs", {})
    waiting, seen = [(model.__name__, whole)], {model.__name__}
    while waiting:
        name, schema = waiting.pop(0)
        yield name, schema
        mentioned = [other for part in schema.get("properties", {}).values() for other in referenced(part)]
        waiting += [(other, definitions[other]) for other in dict.fromkeys(mentioned) if other not in seen]
        seen.update(mentioned)


def job_spec_page() -> str:
    """docs/job-spec.md: every model once, the kinds first; a kind that extends FineTune shows what it adds."""
    kinds = job_file.KINDS.values()
    models: tuple[type[BaseModel], ...] = (job_file.Metadata, *kinds)
    first = {model.__name__: model.model_json_schema() for model in models}
    shared = first["FineTuneSpec"]["properties"].keys()
    parts = [section(name, schema, shared if name == "DistillSpec" else frozenset()) for name, schema in first.items()]
    rest = {name: schema for model in kinds for name, schema in reachable(model) if name not in first}
    return "\n".join([INTRODUCTION, *parts, *(section(name, schema) for name, schema in rest.items())])


def with_block(page: Path, name: str, block: str) -> str:
    """The page as it is, with what stands between its two marks replaced."""
    begin, end = f"<!-- {name}: generated by `make docs` -->\n", f"<!-- /{name} -->"
    before, found, rest = (ROOT / page).read_text("utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} has lost its marks {begin.strip()} ... {end}")
    return f"{before}{begin}{block}{end}{after}"


def pages() -> dict[Path, str]:
    """Path from the root -> what it should hold."""
    return {
        JOB_SPEC: job_spec_page(),
        COMMANDS: command_page(),
        SETTINGS: settings_page(),
        ARCHITECTURE: with_block(ARCHITECTURE, "lifecycle", f"```mermaid\n{mermaid()}```\n"),
        README: with_block(README, "files", reading_list(ROOT)),
    }


def stale(wanted: Mapping[Path, str]) -> list[Path]:
    """Pages whose text is not what the code says."""
    return [
        path for path, text in wanted.items() if not (ROOT / path).is_file() or (ROOT / path).read_text("utf-8") != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    wanted = pages()
    if not parser.parse_args().check:
        for path, text in wanted.items():
            (ROOT / path).write_text(text, "utf-8")
        return 0
    if found := stale(wanted):
        sys.stderr.write("".join(f"stale: {path}\n" for path in found) + "mend with: make docs\n")
        return 1
    sys.stdout.write("generated docs ok\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
