"""The server's certificate: read anew when its file changes, for connections from then on, without a restart.

Clients' side is `cluster/channel.py`.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import structlog

from cluster.channel import is_loopback
from cluster.errors import StartUpError
from cluster.settings import Settings

log = structlog.get_logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


def check_exposure(settings: Settings) -> None:
    """Whoever can be reached from elsewhere asks for tokens, over TLS, unless told that the network is private."""
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise StartUpError(
            "TLS_INCOMPLETE", "a certificate goes with its key: set ATHANOR_TLS_CERT and ATHANOR_TLS_KEY"
        )
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        raise StartUpError("TLS_INCOMPLETE", "ATHANOR_TLS_CLIENT_CA asks for ATHANOR_TLS_CERT and ATHANOR_TLS_KEY")
    if (settings.tls_driver_cert is None) != (settings.tls_driver_key is None):
        words = "drivers show a certificate with its key: set ATHANOR_TLS_CLIENT_CERT and ATHANOR_TLS_CLIENT_KEY"
        raise StartUpError("TLS_INCOMPLETE", words)
    if settings.tls_client_ca is not None and settings.tls_driver_cert is None:
        words = "drivers would not be let in: set ATHANOR_TLS_CLIENT_CERT and ATHANOR_TLS_CLIENT_KEY to what they show"
        raise StartUpError("TLS_INCOMPLETE", words)
    if is_loopback(settings.listen):
        return
    if settings.auth == "none":
        message = f"ATHANOR_AUTH=none lets everybody in, and {settings.listen} can be reached from elsewhere"
        raise StartUpError("AUTH_REQUIRED", f"{message}; use tokens, or listen on 127.0.0.1")
    if settings.tls_cert is None and not settings.insecure:
        message = f"tokens would travel to {settings.listen} unencrypted; set ATHANOR_TLS_CERT and ATHANOR_TLS_KEY"
        raise StartUpError("TLS_REQUIRED", f"{message}, or ATHANOR_INSECURE=1 where the network itself is private")


def server_credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """None without a certificate; StartUpError / TLS_UNUSABLE names what is wrong with it."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate = Certificate(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(
        certificate.read(),
        certificate.changed,  # type: ignore[arg-type]  # None is right: nothing changed
        require_client_authentication=settings.tls_client_ca is not None,
    )


class Certificate:
    """Certificate, key and the CA of clients, as they are on disk now."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._stamp: Stamp = ()

    def read(self) -> grpc.ServerCertificateConfiguration:
        """StartUpError / TLS_UNUSABLE when the files do not make a certificate."""
        try:
            stamp = self._look()
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            ca = self._client_ca.read_bytes() if self._client_ca else None
            pair = (self._key.read_bytes(), self._certificate.read_bytes())
        except OSError as error:  # ssl.SSLError is one
            message = f"{self._certificate} and {self._key} cannot be used: {error}; see ATHANOR_TLS_CERT"
            raise StartUpError("TLS_UNUSABLE", message) from error
        self._stamp = stamp
        return grpc.ssl_server_certificate_configuration([pair], ca)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked before each handshake: the new one, None while nothing changed or what is there is half a change."""
        try:
            if self._look() == self._stamp:
                return None
            found = self.read()
        except (OSError, StartUpError) as error:
            log.warning("tls.not_reloaded", error=str(error))
            return None
        log.info("tls.reloaded", certificate=str(self._certificate))
        return found

    def _look(self) -> Stamp:
        files = [each for each in (self._certificate, self._key, self._client_ca) if each is not None]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in (each.stat() for each in files))
