"""The command answers before anything heavy is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "ray", "grpc", "google.protobuf", "transformers", "datasets", "deepspeed", "sqlalchemy")
SCRIPT = """
import sys
from cluster.cli.main import app
try:
    app(sys.argv[1:])
finally:
    sys.stderr.write(" ".join(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "job file to a served student"),
        (["job", "submit", "--help"], "--dry-run"),
        (["--version"], "athanor 0."),
        (["serve", "--help"], "deploy"),
        (["version", "-o", "name"], "0."),
    ],
)
def test_help_and_version_load_nothing_heavy(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(heavy=HEAVY), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert words in " ".join(run.stdout.split())
    assert run.stderr == ""


def test_the_schema_loads_no_torch() -> None:
    command = [sys.executable, "-c", SCRIPT.format(heavy=("torch", "ray", "grpc", "transformers")), "job", "schema"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert '"properties"' in run.stdout
    assert run.stderr == ""
