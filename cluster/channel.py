"""How every client of ours opens its connection: plain on loopback, TLS elsewhere, the token on each call.

Knows files and options, and no single RPC. Where address, token and files come from is `access.py`'s affair.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from cluster.errors import InvalidInput

Options = Sequence[tuple[str, Any]]

# We repeat calls ourselves; and a proxy for the web knows no way to a cluster, least of all to 127.0.0.1.
OPTIONS: Options = (("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))
INSECURE = "ATHANOR_INSECURE"
_SCHEME = "Bearer "
_HOST = re.compile(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\]")


@dataclass(frozen=True)
class Tls:
    """Files in PEM: whom to believe, and who we are where the server asks for that."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = field(default=None, repr=False)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Tls | None:
        """ATHANOR_TLS_CA, ATHANOR_TLS_CLIENT_CERT, ATHANOR_TLS_CLIENT_KEY; None without the first."""
        return cls.of(*(environ.get(f"ATHANOR_TLS_{name}", "") for name in ("CA", "CLIENT_CERT", "CLIENT_KEY")))

    @classmethod
    def of(cls, ca: str = "", certificate: str = "", key: str = "") -> Tls | None:
        """From what people write; InvalidInput / TLS_INCOMPLETE when a part of it is missing."""
        if bool(certificate) != bool(key) or (certificate and not ca):
            message = "a client's certificate goes with its key and with the CA of the server; give all three"
            raise InvalidInput("TLS_INCOMPLETE", message)
        client = (Path(certificate).expanduser(), Path(key).expanduser()) if certificate else (None, None)
        return cls(Path(ca).expanduser(), *client) if ca else None

    def credentials(self) -> grpc.ChannelCredentials:
        """As gRPC wants them; InvalidInput / TLS_FILE_UNREADABLE names the file."""
        return grpc.ssl_channel_credentials(_content(self.ca), _content(self.key), _content(self.certificate))


def check_address(address: str) -> None:
    """InvalidInput / INVALID_ADDRESS for what names no place on the network: host:port, [IPv6]:port, unix:path."""
    host, _, port = address.rpartition(":")
    is_place = _HOST.fullmatch(host) is not None and port.isdigit() and 0 < int(port) < 65536
    if not is_place and not (address.startswith("unix:") and address != "unix:"):
        message = f"{address!r} is no address; write host:port, e.g. athanor.example:50051"
        raise InvalidInput("INVALID_ADDRESS", message)


def open_channel(address: str, token: str = "", tls: Tls | None = None, options: Options = OPTIONS) -> grpc.Channel:
    """A channel whose every call carries the token. Opened lazily: it fails with the first call, not here."""
    check_address(address)
    token = _checked(token)
    check_token_is_safe(address, token, tls)
    if tls is None:
        channel = grpc.insecure_channel(address, options=list(options))
    else:
        channel = grpc.secure_channel(address, tls.credentials(), options=list(options))
    return grpc.intercept_channel(channel, _SendToken(token)) if token else channel


def open_async_channel(
    address: str, token: str = "", tls: Tls | None = None, options: Options = OPTIONS
) -> grpc.aio.Channel:
    """The same for asyncio."""
    check_address(address)
    token = _checked(token)
    check_token_is_safe(address, token, tls)
    interceptors: Any = [_SendTokenUnary(token), _SendTokenStream(token)] if token else None
    if tls is None:
        return grpc.aio.insecure_channel(address, options=list(options), interceptors=interceptors)
    return grpc.aio.secure_channel(address, tls.credentials(), options=list(options), interceptors=interceptors)


def _checked(token: str) -> str:
    """Without the line break that files and secret stores put at its end."""
    bare = token.strip()
    if not (bare.isascii() and bare.isprintable()):
        raise InvalidInput("TOKEN_MALFORMED", "the token holds characters that no token has; compare ATHANOR_TOKEN")
    return bare


def check_token_is_safe(address: str, token: str, tls: Tls | None, environ: Mapping[str, str] = os.environ) -> None:
    """InvalidInput / TOKEN_IN_THE_CLEAR where everybody on the way could read the token."""
    if token and tls is None and not is_loopback(address) and environ.get(INSECURE) != "1":
        message = (
            f"the token would travel to {address} unencrypted; set ATHANOR_TLS_CA to the server's CA, "
            f"or {INSECURE}=1 where the network itself is private"
        )
        raise InvalidInput("TOKEN_IN_THE_CLEAR", message)


def is_loopback(address: str) -> bool:
    """Whether host:port (or unix:path) never leaves this machine. A name counts only as `localhost`."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _content(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput("TLS_FILE_UNREADABLE", f"{path} cannot be read: {error.strerror}") from error


class _Details(NamedTuple):
    """What gRPC wants back from an interceptor; its own class is not public."""

    method: Any
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: bool | None
    compression: Any = None


def _with_token(details: Any, token: str) -> _Details:
    metadata = [*(details.metadata or ()), ("authorization", _SCHEME + token)]
    return _Details(details.method, details.timeout, metadata, details.credentials, details.wait_for_ready)


class _SendToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_with_token(details, self._token), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_with_token(details, self._token), request)


def _with_token_async(details: grpc.aio.ClientCallDetails, token: str) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    metadata.add("authorization", _SCHEME + token)
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )


class _SendTokenUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(_with_token_async(details, self._token), request)


class _SendTokenStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return await continuation(_with_token_async(details, self._token), request)
