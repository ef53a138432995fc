"""Where clients find their control plane, and what they show it: by flags, environment, context, local home.

Also the contexts themselves: `~/.config/athanor/config.yaml`, for those who work with several installations. Loads no
gRPC.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from cluster.home import Home
from trainer import atomic

_VARIABLES = {
    "address": "ATHANOR_ADDRESS",
    "token": "ATHANOR_TOKEN",
    "token_file": "ATHANOR_TOKEN_FILE",
    "tls_ca": "ATHANOR_TLS_CA",
    "client_cert": "ATHANOR_TLS_CLIENT_CERT",
    "client_key": "ATHANOR_TLS_CLIENT_KEY",
    "project": "ATHANOR_PROJECT",
}


@dataclass(frozen=True)
class Access:
    """How to reach one control plane; empty fields say nothing. Files are paths."""

    address: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    tls_ca: str = ""
    client_cert: str = ""
    client_key: str = ""
    project: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Access:
        return cls(**{name: environ.get(variable, "") for name, variable in _VARIABLES.items()})

    def or_else(self, other: Access) -> Access:
        """Each field of ours, where we have one; token and token file count as one, and so do certificate and key."""
        chosen = {each.name: getattr(self, each.name) or getattr(other, each.name) for each in fields(self)}
        if self.token or self.token_file:
            chosen |= {"token": self.token, "token_file": self.token_file}
        return Access(**chosen)

    @property
    def secret(self) -> str:
        """The token's text; InvalidInput / TOKEN_FILE_UNREADABLE when its file cannot be read."""
        if self.token or not self.token_file:
            return self.token
        try:
            return Path(self.token_file).expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise _wrong("TOKEN_FILE_UNREADABLE", f"the token in {self.token_file} cannot be read: {why}") from error

    def for_client(self) -> dict[str, Any]:
        """The arguments of a client, without the address."""
        names = ("tls_ca", "client_cert", "client_key")
        return {"token": self.secret, **{name: getattr(self, name) for name in names}}


def find_access(given: Access | None = None, environ: Mapping[str, str] = os.environ) -> Access:
    """What a command shall use.

    A context and the local home count as a whole: their token goes only to the address that they name.
    """
    asked = (given or Access()).or_else(Access.from_env(environ))
    context = Contexts.load(environ).current
    if not asked.address:
        return asked.or_else(context or local_access(environ))
    known = (context, _local_if_readable(environ))
    return asked.or_else(next((each for each in known if each and each.address == asked.address), Access()))


def _local_if_readable(environ: Mapping[str, str]) -> Access | None:
    """Whoever names an address may do without the local cluster's record."""
    from cluster.errors import StartUpError  # loads gRPC

    try:
        return local_access(environ)
    except StartUpError:
        return None


def local_access(environ: Mapping[str, str] = os.environ) -> Access:
    """The control plane that `athanor up` started here, and the token that it wrote; nothing where none is up."""
    home = Home.from_env(environ)
    record = home.read_record()
    path = home.admin_token_path
    return Access(
        address=record.control_plane if record else "",
        token_file=str(path) if record and path.exists() else "",
        tls_ca=record.tls_ca if record else "",
    )


@dataclass(frozen=True)
class Contexts:
    """The contexts that somebody named, and which of them is in use."""

    path: Path
    named: Mapping[str, Access] = field(default_factory=dict)
    in_use: str = ""

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Contexts:
        """Of `$XDG_CONFIG_HOME/athanor/config.yaml`; none where there is no such file."""
        root = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config").expanduser()
        path = root / "athanor" / "config.yaml"
        try:
            document = yaml.safe_load(path.read_text()) or {}
            named = {str(name): Access(**values) for name, values in (document.get("contexts") or {}).items()}
            return cls(path, named, str(document.get("current") or ""))
        except FileNotFoundError:
            return cls(path)
        except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError) as error:
            words = " ".join(str(error).split())
            raise _wrong("CONFIG_UNREADABLE", f"{path} cannot be read: {words}; mend it or delete it") from error

    @property
    def current(self) -> Access | None:
        return self.get(self.in_use) if self.in_use else None

    def get(self, name: str) -> Access:
        if name not in self.named:
            known = ", ".join(sorted(self.named)) or "none yet; make one with `athanor context set`"
            raise _wrong("CONTEXT_NOT_FOUND", f"there is no context {name!r}; there are: {known}")
        return self.named[name]

    def use(self, name: str) -> Contexts:
        """The same with this one in use; an empty name goes back to environment and local home."""
        if name:
            self.get(name)
        return replace(self, in_use=name)

    def with_context(self, name: str, access: Access) -> Contexts:
        return replace(self, named={**self.named, name: access}, in_use=self.in_use or name)

    def without(self, name: str) -> Contexts:
        self.get(name)
        named = {each: access for each, access in self.named.items() if each != name}
        return replace(self, named=named, in_use="" if self.in_use == name else self.in_use)

    def save(self) -> None:
        """For its owner alone: it may hold tokens."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic.write_text(self.path, yaml.safe_dump(self._document(), sort_keys=False), mode=0o600)

    def _document(self) -> dict[str, Any]:
        contexts = {
            name: {key: value for key, value in vars(access).items() if value} for name, access in self.named.items()
        }
        return {"current": self.in_use, "contexts": contexts}


def _wrong(reason: str, message: str) -> Exception:
    from cluster.errors import InvalidInput  # loads gRPC

    return InvalidInput(reason, message)
