"""A driver without learning: holds its lease, and succeeds when a file named `finish` lies beside its attempt.json."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import grpc
from athanor.v1 import worker_service_pb2 as messages
from athanor.v1 import worker_service_pb2_grpc
from google.protobuf import json_format


def is_cancelled(stub: worker_service_pb2_grpc.WorkerServiceStub, ref: messages.AttemptRef) -> bool:
    """Say that we live. A control plane that is away for a while is no reason to end."""
    try:
        answer = stub.Heartbeat(messages.HeartbeatRequest(attempt=ref), timeout=5)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            raise
        return False
    return answer.directive == messages.DIRECTIVE_CANCEL


def main() -> None:
    path = Path(sys.argv[-1])
    attempt = json.loads(path.read_text())
    ref = messages.AttemptRef(
        job_uid=attempt["job_uid"], attempt=attempt["attempt"], lease_token=attempt["lease_token"]
    )
    log = (path.parent / "driver.log").open("w")
    with grpc.insecure_channel(attempt["control_planes"][0]) as channel:
        stub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        print(f"pid {os.getpid()}", file=log, flush=True)
        while not (path.parent / "finish").exists():
            if is_cancelled(stub, ref):
                break
            time.sleep(0.2)
        else:
            record = messages.TerminalRecord(outcome=messages.OUTCOME_SUCCEEDED, model_path=attempt["publish_dir"])
            (path.parent / "terminal.json").write_text(json_format.MessageToJson(record))
            return
        record = messages.TerminalRecord(outcome=messages.OUTCOME_CANCELLED)
        stub.ReportTerminal(messages.ReportTerminalRequest(attempt=ref, record=record), timeout=30)


if __name__ == "__main__":
    main()
