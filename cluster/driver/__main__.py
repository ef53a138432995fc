"""The Ray job's entry point: `python -m cluster.driver --attempt-file <job>/attempts/<n>/attempt.json`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from cluster.driver.attempt import Attempt
from cluster.driver.tee import copied_output


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.driver", description="Run one attempt of a job.")
    parser.add_argument("--attempt-file", type=Path, required=True, help="attempt.json, in the job's directory")
    attempt = Attempt.load(parser.parse_args().attempt_file)
    os.environ |= {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
    with copied_output(attempt.log_path):
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", force=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its plugins whenever it is loaded
        from cluster.driver.supervise import Supervisor  # brings Ray, which reads the environment when it is loaded

        return Supervisor(attempt).run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
