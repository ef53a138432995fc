"""Which revision of which deployment answers a request: the table of routes, and pure choices from it.

The control plane writes the table into the gateway's `user_config`; the gateway reads it and asks here. A choice
depends on the route and on a key alone, so every gateway chooses alike. Knows nothing of Ray, HTTP or models.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

WHOLE = 10_000
"""All of a route's traffic in basis points."""
_SCALE = 1 << 64

Name = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Backend(_Frozen):
    """One revision of a deployment: a Serve application of its own."""

    app: Name
    model: Name
    """The version that it serves: `name@3`."""
    revision: Annotated[int, Field(ge=1)]
    weight: Annotated[int, Field(ge=0, le=WHOLE)]
    """Its share of the keys in basis points. 0: chosen for no request, still there to be asked by its version."""


class Mirror(_Frozen):
    """A revision that is asked what others were asked too, its answers seen by the judge alone."""

    app: Name
    revision: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(ge=0, le=1)]
    """Of all requests."""


class Route(_Frozen):
    """One deployment: its revisions, the stable one first, and how its traffic is divided among them."""

    name: Name
    backends: tuple[Backend, ...]
    """Oldest revision first: a canary stands behind the stable one. Empty while none can answer yet."""
    live: Annotated[int, Field(ge=1)] | None = None
    """The revision that is LIVE, whatever its weight; None: the oldest."""
    mirror: Mirror | None = None
    judge_app: str | None = None
    """The Serve application that is told of mirrored pairs."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        revisions = [backend.revision for backend in self.backends]
        if any(later <= earlier for earlier, later in pairwise(revisions)):
            raise ValueError(f"{self.name}: revisions {revisions} are not in order; list the oldest first")
        total = sum(backend.weight for backend in self.backends)
        if self.backends and total != WHOLE:
            raise ValueError(f"{self.name}: weights add up to {total}; give {WHOLE} basis points in all")
        if self.live is not None and self.live not in revisions:
            raise ValueError(f"{self.name}: live revision {self.live} is none of {revisions}; name one of them")
        return self

    @property
    def stable(self) -> Backend | None:
        """Who answers when another fails, and what a canary is compared with: also while that takes all requests."""
        return next((backend for backend in self.backends if self.live in (backend.revision, None)), None)


class RouteTable(_Frozen):
    """All that a gateway is told: the `user_config` of its Serve deployment."""

    routes: tuple[Route, ...] = ()
    control_planes: tuple[str, ...] = ()
    """`host:port` of every control plane, asked who a bearer token belongs to."""
    tls_ca: str | None = None
    """PEM text of the authority behind the control planes' certificates; None: no TLS."""
    tls_cert: str | None = None
    """Path of the certificate that is shown, where control planes ask for one."""
    tls_key: str | None = None
    auth: Literal["token", "none"] = "token"

    def route(self, name: str) -> Route | None:
        """The deployment of this name."""
        return next((route for route in self.routes if route.name == name), None)

    def named(self, model: str) -> tuple[Route, Backend | None] | None:
        """What a request's `model` means: a deployment, or one version (`name@3`) wherever it lives."""
        route = self.route(model)
        if route is not None:
            return route, None
        living = ((route, backend) for route in self.routes for backend in route.backends if backend.model == model)
        return max(living, key=lambda found: found[1].weight, default=None)


def position(*key: str) -> float:
    """Where a key lies in [0, 1): the same everywhere and always, evenly spread over keys."""
    digest = hashlib.sha256("\0".join(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") / _SCALE


def choose(route: Route, key: str) -> Backend:
    """The revision that answers this key; LookupError while there is none.

    Newer revisions take keys from the low end. So growing a canary's weight moves keys to it and none away from it,
    and a key that was promoted with it stays.
    """
    if not route.backends:
        raise LookupError(f"no revision of {route.name} answers yet")
    at, edge = int(position(route.name, key) * WHOLE), 0
    for backend in reversed(route.backends):
        edge += backend.weight
        if at < edge:
            return backend
    raise AssertionError("weights of a route add up to the whole")


def mirrored(route: Route, request_id: str) -> Backend | None:
    """The revision that is asked in the dark as well, if this request is one of those: never the stable one itself."""
    mirror = route.mirror
    if mirror is None or position("mirror", route.name, request_id) >= mirror.share:
        return None
    found = next((backend for backend in route.backends if backend.revision == mirror.revision), None)
    return None if found == route.stable else found
