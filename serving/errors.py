"""What can go wrong while serving, as one small picklable tree. Each request error knows its OpenAI shape.

ServingError
├── ModelDirectoryError      the directory is not one that may be served
├── EngineOptionsError       the engine cannot be had with these limits
├── EngineFailed             the engine broke on a request; nothing of why leaves the process
├── BackendFailed            a replica died or broke over a request; another may answer it
└── RequestError             the client's side: status, code and the field that is wrong
    ├── InvalidRequest       400
    ├── Unauthenticated      401
    ├── Forbidden            403
    ├── ModelNotFound        404
    ├── BodyTooLarge         413
    ├── Overloaded           429, come back later
    │   └── RateLimited      429, this token asks too often
    ├── Unavailable          503, nobody can answer at the moment
    └── DeadlineExceeded     504, it took longer than the request allows
"""

from __future__ import annotations

from typing import ClassVar


class ServingError(Exception):
    """Base: `message` is one sentence for people."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ModelDirectoryError(ServingError):
    """The model directory is incomplete, altered, or would need code or pickles to load."""


class EngineOptionsError(ServingError):
    """The engine has no such limit for this model, or cannot keep them together."""


class EngineFailed(ServingError):
    """The engine could not finish a request."""


class BackendFailed(ServingError):
    """A replica died or broke over a request; another may answer it."""


class RequestError(ServingError):
    """The request cannot be answered as it is; `param` names the field."""

    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"
    default_code: ClassVar[str | None] = None
    retry_after_s: float | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code if code is not None else self.default_code

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message,), vars(self))


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type, out of range, or not supported."""


class Unauthenticated(RequestError):
    """No token was sent, or none that is good."""

    status = 401
    default_code = "invalid_api_key"


class Forbidden(RequestError):
    """The token is known and does not allow this."""

    status = 403
    kind = "permission_error"
    default_code = "forbidden"


class ModelNotFound(RequestError):
    """This endpoint serves another model."""

    status = 404
    default_code = "model_not_found"


class BodyTooLarge(RequestError):
    """More bytes than a request may have."""

    status = 413
    default_code = "request_too_large"


class Overloaded(RequestError):
    """The queue is full."""

    status = 429
    kind = "rate_limit_error"
    default_code = "overloaded"


class RateLimited(Overloaded):
    """This token asks too often, or for too much at once."""

    default_code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(RequestError):
    """Nobody can answer at the moment; worth another try."""

    status = 503
    kind = "server_error"
    default_code = "unavailable"


class DeadlineExceeded(RequestError):
    """The answer was not complete in the time that the request had."""

    status = 504
    kind = "timeout_error"
    default_code = "timeout"


def error_body(message: str, *, kind: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
