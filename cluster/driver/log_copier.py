"""`python -m cluster.driver.log_copier FILE`: stdin goes on to stdout and to the end of FILE, as `tee -a` does it,
without the values of this node's secrets. Loads no torch, no Ray: a worker starts it beside itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cluster.driver.tee import copy
from trainer.secrets import Redactor, known_here


def main() -> None:
    with Path(sys.argv[1]).open("ab", buffering=0) as file:
        copy(0, file, os.dup(1), Redactor(known_here()))


if __name__ == "__main__":
    main()
