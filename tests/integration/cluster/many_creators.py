"""64 callers that make jobs as fast as they can and say which were acknowledged: `python many_creators.py URL`."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid

from cluster.ids import new_job_uid
from cluster.store.audit_rows import Call
from cluster.store.creation_rows import Created, Creation
from cluster.store.records import NewJob
from cluster.store.store import Store
from cluster.together import Together

CALL = Call("ann", "ipv4:127.0.0.1:1", "athanor.v1.JobService/CreateJob", "", "OK", "", "req-1")


async def ask(together: Together[Creation, Created]) -> None:
    while True:
        new = NewJob(new_job_uid("bot"), "bot", "FineTune", {}, {"a": 1}, 500, {})
        created = await together.add(Creation(new, str(uuid.uuid4()), "hash", call=CALL))
        print(json.dumps({"uid": created.job.uid}), flush=True)


async def main() -> None:
    together: Together[Creation, Created] = Together(Store.open(sys.argv[1]).create_jobs)
    await asyncio.gather(*(ask(together) for _ in range(64)))


if __name__ == "__main__":
    asyncio.run(main())
