"""TokenService: makes, shows and revokes tokens. Who is let in with one is decided in the interceptor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
from athanor.v1 import options_pb2, token_service_pb2_grpc
from athanor.v1 import token_service_pb2 as messages

from cluster.errors import InvalidInput, Violation, in_words
from cluster.registry import NAME_RULE, is_name
from cluster.security.caller import Caller, Role, caller
from cluster.security.tokens import Tokens, TokenText
from cluster.store.store import Store
from cluster.store.token_rows import StoredToken
from cluster.wire import timestamp

_READ_FIELDS = frozenset({"name", "role", "projects"})
_MOST_PROJECTS = 64
_LONGEST_TTL_S = 10 * 366 * 86_400


class TokenService(token_service_pb2_grpc.TokenServiceServicer):
    """Handlers only."""

    def __init__(self, store: Store, tokens: Tokens) -> None:
        self._store = store
        self._tokens = tokens

    async def CreateToken(
        self, request: messages.CreateTokenRequest, context: grpc.ServicerContext
    ) -> messages.CreateTokenResponse:
        del context
        _check(request)
        text, wish = TokenText.new(), request.token
        new = StoredToken(
            id=text.id,
            name=wish.name,
            secret_sha256=text.sha256,
            role=Role(wish.role).name,
            projects=tuple(sorted(set(wish.projects))),
            created_by=caller().name,
            expire_time_us=self._expire_time_us(request),
        )
        stored = await asyncio.to_thread(self._store.create_token, new)
        return messages.CreateTokenResponse(token=_to_proto(stored), secret=str(text))

    def _expire_time_us(self, request: messages.CreateTokenRequest) -> int | None:
        if not request.HasField("ttl"):
            return None
        return self._store.wall_us() + request.ttl.seconds * 1_000_000 + request.ttl.nanos // 1000

    async def ListTokens(
        self, request: messages.ListTokensRequest, context: grpc.ServicerContext
    ) -> messages.ListTokensResponse:
        del request, context
        stored = await asyncio.to_thread(self._store.list_tokens)
        return messages.ListTokensResponse(tokens=map(_to_proto, stored))

    async def RevokeToken(
        self, request: messages.RevokeTokenRequest, context: grpc.ServicerContext
    ) -> messages.RevokeTokenResponse:
        del context
        stored = await asyncio.to_thread(self._store.revoke_token, request.id)
        self._tokens.forget(stored.id)
        return messages.RevokeTokenResponse(token=_to_proto(stored))

    async def GetCaller(
        self, request: messages.GetCallerRequest, context: grpc.ServicerContext
    ) -> messages.GetCallerResponse:
        del request, context
        who = caller()
        stored = await asyncio.to_thread(self._store.find_token, who.token_id) if who.token_id else None
        return messages.GetCallerResponse(token=_to_proto(stored) if stored else _nobody(who))


def _nobody(who: Caller) -> messages.Token:
    """Where no token is asked for."""
    return messages.Token(name=who.name, role=options_pb2.Role.Value(f"ROLE_{who.role.name}"))


def _check(request: messages.CreateTokenRequest) -> None:
    found = list(_violations(request))
    if found:
        raise InvalidInput("INVALID_TOKEN", in_words(found), found)


def _violations(request: messages.CreateTokenRequest) -> Iterator[Violation]:
    token, role = request.token, int(request.token.role)
    for field, _ in token.ListFields():
        if field.name not in _READ_FIELDS:
            yield Violation(f"token.{field.name}", "is set by the server; leave it out")
    if not is_name(token.name):
        yield Violation("token.name", f"{token.name!r} is no name; {NAME_RULE}")
    if role not in [int(each) for each in Role]:
        yield Violation("token.role", "is missing or unknown; a token is for viewer, submitter or admin")
    if role == int(Role.ADMIN) and token.projects:
        yield Violation("token.projects", "an admin's token reaches all projects; leave them out")
    if len(token.projects) > _MOST_PROJECTS:
        yield Violation("token.projects", f"{len(token.projects)} are more than {_MOST_PROJECTS}; none means all")
    for at, name in enumerate(token.projects[:_MOST_PROJECTS]):
        if not is_name(name):
            yield Violation(f"token.projects[{at}]", f"{name!r} is no name; {NAME_RULE}")
    if request.HasField("ttl") and not 0 < request.ttl.seconds <= _LONGEST_TTL_S:
        yield Violation("ttl", f"{request.ttl.seconds} s is not between 1 second and ten years; without it: no end")


def _to_proto(token: StoredToken) -> messages.Token:
    message = messages.Token(
        id=token.id, name=token.name, role=options_pb2.Role.Value(f"ROLE_{token.role}"), projects=token.projects
    )
    for field in ("create_time", "expire_time", "revoke_time", "last_use_time"):
        time_us = getattr(token, f"{field}_us")
        if time_us is not None:
            getattr(message, field).CopyFrom(timestamp(time_us))
    return message
