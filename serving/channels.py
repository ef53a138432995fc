"""Channels from gateways and judges to control planes: with TLS where there is an authority, else without.

Who asks decides when to try again; a channel does not.
"""

from __future__ import annotations

from pathlib import Path

import grpc

_OPTIONS = (("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))


def read_credentials(tls_ca: str | None, tls_cert: str | None, tls_key: str | None) -> grpc.ChannelCredentials | None:
    """`tls_ca` is PEM text, None: no TLS; the others are paths, of what is shown where a certificate is asked for.

    OSError where one of those cannot be read.
    """
    if tls_ca is None:
        return None
    shown = [Path(each).read_bytes() if each else None for each in (tls_key, tls_cert)]
    return grpc.ssl_channel_credentials(tls_ca.encode(), *shown)


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """To the control plane at `host:port`."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=_OPTIONS)
