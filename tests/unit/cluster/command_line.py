"""A command line in front of a stand-in control plane: arguments in; exit code, stdout and stderr out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.cli.main import main

JOB = """
apiVersion: athanor/v1
kind: FineTune
metadata: {name: %s}
spec:
  student: {model: a/b}
  data: {train: c/d}
  training: {max_steps: 3}
"""


class Shell:
    """Runs commands as a shell would: arguments in; exit code, stdout and stderr out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self.folder = tmp_path

    def run(self, *arguments: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["athanor", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = self._capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    def job_file(self, name: str = "bot") -> str:
        path = self.folder / f"{name}.yaml"
        path.write_text(JOB % name)
        return str(path)
