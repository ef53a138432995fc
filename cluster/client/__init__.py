"""The Python client: `AthanorClient` for programs that wait, `AsyncAthanorClient` for asyncio; see docs/client.md.

Answers are the messages of `athanor.v1`; errors are `RequestFailed`, and `NotFinished` of a wait that ended first.
"""

from cluster.client.asynchronous import AsyncAthanorClient
from cluster.client.blocking import AthanorClient
from cluster.client.handle import AsyncJobHandle, JobHandle
from cluster.client.streams import TERMINAL
from cluster.rpc import NotFinished, RequestFailed

__all__ = [
    "TERMINAL",
    "AsyncAthanorClient",
    "AsyncJobHandle",
    "AthanorClient",
    "JobHandle",
    "NotFinished",
    "RequestFailed",
]
