"""Fills a store with jobs of a history each: `python -m benchmarks.control.fill URL N`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from benchmarks.control.load import manifest
from cluster.ids import new_job_uid
from cluster.lifecycle import State
from cluster.store import job_rows
from cluster.store.records import Change, NewJob
from cluster.store.store import Store

_AT_ONCE = 500
_LIVE_SHARE = 20
"""One of so many waits still; the others have ended."""


def pieces(count: int) -> Iterator[range]:
    return (range(first, min(first + _AT_ONCE, count)) for first in range(0, count, _AT_ONCE))


def fill(store: Store, count: int) -> None:
    spec = manifest("/data/train.jsonl")["spec"]
    far_us = 32_472_144_000_000_000
    for piece in pieces(count):
        with store.database.write() as write:
            for number in piece:
                new = NewJob(
                    new_job_uid("old"), "old", "FineTune", {"n": str(number)}, spec, 500, {}, hold_until_us=far_us
                )
                job = job_rows.insert_job(write, new)
                if number % _LIVE_SHARE:
                    asked = job_rows.apply(write, job, Change("CANCEL_ASKED", "enough", State.CANCELLING))
                    job_rows.apply(write, asked, Change("CANCELLED", "cancelled", State.CANCELLED))


def main() -> None:
    store = Store.open(sys.argv[1])
    began = time.perf_counter()
    fill(store, int(sys.argv[2]))
    store.close()
    print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
