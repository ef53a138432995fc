"""A Ray of the test session's own: free ports, own temp dir, own token, gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.process import end
from cluster.ray_head import RayHead, loopback_env, start_head

# Ray reads these once, when it is loaded, which the import of some test module may do.
os.environ.update({**loopback_env(), "RAY_AUTH_MODE": "token"})

NUM_CPUS = 4  # logical: what the scheduler hands out, whatever the machine has


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayHead]:
    """A Ray head with token authentication; the environment names it, so `ray.init()` and subprocesses find it."""
    root = Path(tempfile.mkdtemp(prefix="ath-"))
    own = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "ATHANOR_SECRETS_DIR": str(root / "secrets")}
    head = start_head(
        root / "ray",
        num_cpus=NUM_CPUS,
        log_path=root / "ray.log",
        token_path=root / "token",
        env={**os.environ, **own},
    )
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {**head.client_env(), **own}.items():
            environment.setenv(name, value)
        try:
            yield head
        finally:
            end(head.process)
            shutil.rmtree(root)
