"""Python for the contract: runs protoc with the plugins of the environment and writes beside the proto files.

`--check` generates into a temporary folder and compares, so a stale or hand-edited file is named, not overwritten.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PLUGINS = ("python", "grpc_python", "mypy", "mypy_grpc")


def proto_files() -> list[str]:
    """Paths from `protos/`, sorted: protoc's output then depends on nothing else."""
    return sorted(path.relative_to(PROTOS).as_posix() for path in PROTOS.rglob("*.proto"))


def generate(target: Path) -> None:
    """Write the Python of all proto files under `target`."""
    outputs = [f"--{plugin}_out={target}" for plugin in PLUGINS]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *proto_files()]
    search_path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    finished = subprocess.run(
        command, cwd=PROTOS, env={**os.environ, "PATH": search_path}, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise SystemExit(finished.stderr)


def contents(folder: Path) -> dict[str, bytes]:
    """Generated file -> its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*_pb2*.py*"))
        if path.suffix in {".py", ".pyi"}
    }


def differences(fresh: Mapping[str, bytes], committed: Mapping[str, bytes]) -> list[str]:
    """What is wrong with the committed files, one line each."""
    missing = [f"missing: protos/{name}" for name in fresh.keys() - committed.keys()]
    orphaned = [f"has no proto file: protos/{name}" for name in committed.keys() - fresh.keys()]
    stale = [f"stale: protos/{name}" for name in fresh.keys() & committed.keys() if fresh[name] != committed[name]]
    return sorted(missing + orphaned + stale)


def check() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        found = differences(contents(Path(temporary)), contents(PROTOS))
    if found:
        sys.stderr.write("\n".join([*found, "mend with: make protos", ""]))
        return 1
    sys.stdout.write("protos ok\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    if parser.parse_args().check:
        return check()
    generate(PROTOS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
