"""How a command finds its control plane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.client import AthanorClient

AddressOption = Annotated[
    str,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="Control plane; without it ATHANOR_ADDRESS, else the context's, else the local cluster's.",
        show_default=False,
    ),
]
_PATIENCE_S = 3.0


def _nowhere() -> Exception:
    import grpc

    from cluster.home import Home
    from cluster.rpc import RequestFailed

    words = (
        f"no local cluster is up in {Home.from_env().root}, and no --address, ATHANOR_ADDRESS or context names "
        "another; start one with `athanor up`"
    )
    return RequestFailed(grpc.StatusCode.UNAVAILABLE, "NO_CONTROL_PLANE", words)


def connect(address: str) -> AthanorClient:
    """A client of this address, or of the one that environment, context or local cluster names, with its token."""
    from cluster.access import Access, find_access
    from cluster.client import AthanorClient

    found = find_access(Access(address=address))
    if not found.address:
        raise _nowhere()
    return AthanorClient(found.address, **found.for_client(), patience_s=_PATIENCE_S)
