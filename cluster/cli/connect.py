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
        help="Control plane; without it ATHANOR_ADDRESS, else the local cluster's, else 127.0.0.1:50051.",
        show_default=False,
    ),
]
_PATIENCE_S = 3.0


def connect(address: str) -> AthanorClient:
    """A client of this address, or of the one that the environment or the local cluster names."""
    from cluster.client import AthanorClient
    from cluster.home import control_plane_address

    return AthanorClient(address or control_plane_address(), patience_s=_PATIENCE_S)
