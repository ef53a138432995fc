"""docs/settings.md: every variable of the control plane's environment, out of its settings."""

from __future__ import annotations

import re
from typing import Any

from cluster.settings import DRIVER_VARIABLES, VARIABLES, Settings

_DEFAULTS = {
    "home": "`~/.athanor`",
    "database_url": "`athanor.db` (SQLite) in `ATHANOR_HOME`",
    "storage": "`storage` in `ATHANOR_HOME`",
    "driver_python": "the Python that runs it",
}
_BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
_HEAD = """\
<!-- generated from cluster/settings.py by `make docs`; do not edit -->
# Settings

A control plane is set up by the variables of its environment, read once at its start: `athanor up` hands its own on,
`athanor control-plane` reads them where it is called. An empty variable counts as unset. Durations are seconds. One
that begins with `ATHANOR_` and is none of these is named in the log (`settings.unknown_variable`), with the one that
was probably meant; a wrong value ends the start with `INVALID_SETTINGS`.

| variable | default | |
|---|---|---|
"""
_TAIL = """
## Of clients

`ATHANOR_ADDRESS`, `ATHANOR_TOKEN`, `ATHANOR_TOKEN_FILE`, `ATHANOR_TLS_CA`, `ATHANOR_TLS_CLIENT_CERT`,
`ATHANOR_TLS_CLIENT_KEY`, `ATHANOR_INSECURE`: [security.md](security.md#tokens-and-roles). `ATHANOR_PROJECT` is the
project of jobs that name none, `ATHANOR_HOME` where `athanor up` keeps the local cluster.

## Of Ray's nodes

`ATHANOR_SECRETS_DIR`, `ATHANOR_SECRET_<NAME>`: [secrets](security.md#secrets-by-reference). {handed} is handed on from
the control plane's environment to drivers; nothing else is.
"""


def settings_page() -> str:
    """The whole page."""
    rows = "".join(_row(field, variable) for field, variable in VARIABLES.items())
    return _HEAD + rows + _TAIL.format(handed=", ".join(f"`{name}`" for name in DRIVER_VARIABLES))


def _row(field: str, variable: str) -> str:
    found = Settings.model_fields[field]
    words = " ".join((found.description or "").split()).replace("|", "\\|")
    words = re.sub(r"`(\w+)`", lambda said: f"`{VARIABLES.get(said[1], said[1])}`", words)
    limits = [
        f"{sign} {getattr(one, name):g}"
        for one in found.metadata
        for name, sign in _BOUNDS.items()
        if hasattr(one, name)
    ]
    more = f" ({', '.join(limits)})" if limits else ""
    return f"| `{variable}` | {_DEFAULTS.get(field) or _written(found.default)} | {words}{more} |\n"


def _written(value: Any) -> str:
    """As it would stand in the environment."""
    if value is None or value == "":
        return "–"
    return (
        f"`{int(value)}`" if isinstance(value, bool) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
    )
