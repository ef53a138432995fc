"""An attempt on disk, as the control plane writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.driver.attempt import Attempt

SPEC: dict[str, Any] = {
    "student": {"config": {"model_type": "llama"}},
    "data": {"train": "/data/train.jsonl"},
    "training": {"max_steps": 1},
}


def written_attempt(storage: Path, *, control_plane: str = "127.0.0.1:9", **fields: Any) -> Attempt:
    uid, number = fields.get("job_uid", "bot-abcdefgh"), fields.get("attempt", 1)
    path = storage / "jobs" / uid / "attempts" / str(number) / "attempt.json"
    path.parent.mkdir(parents=True)
    document = {
        "job_uid": uid,
        "attempt": number,
        "lease_token": "secret",
        "control_planes": [control_plane],
        "kind": "FineTune",
        "name": "bot",
        "spec": SPEC,
        "models": {},
        "storage": str(storage),
        "publish_dir": "",
    }
    path.write_text(json.dumps(document | fields))
    return Attempt.load(path)
