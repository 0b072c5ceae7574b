"""Errors over HTTP as problem documents (RFC 9457): value, cause, way out; never a path or trace.

Every failure that a client can meet has one entry in `KINDS`; the documents link to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """One kind of failure: the HTTP status and the title that all its problems share."""

    status: int
    title: str


KINDS = {
    "unreadable": Kind(400, "The file cannot be read"),
    "bad-request": Kind(400, "The request is malformed"),
    "token": Kind(401, "A token is needed"),
    "not-found": Kind(404, "There is nothing here"),
    "method": Kind(405, "This method is not offered here"),
    "not-acceptable": Kind(406, "The answer has no such form"),
    "slow-body": Kind(408, "The body came too slowly"),
    "too-large": Kind(413, "The body is too large"),
    "not-an-image": Kind(415, "Not an image in a known format"),
    "parameter": Kind(422, "A parameter cannot be used"),
    "too-many-pixels": Kind(422, "The image has too many pixels"),
    "not-scored": Kind(422, "The file is readable but holds nothing to score"),
    "large-headers": Kind(431, "The request's headers are too large"),
    "internal": Kind(500, "The service failed"),
    "not-installed": Kind(501, "This service lacks a package that the answer needs"),
    "busy": Kind(503, "The service is busy"),
    "not-ready": Kind(503, "The service is not ready"),
}


class Problem(BaseModel):
    """A failure, as RFC 9457 has it."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="which kind of failure, a fragment of /docs")
    title: str = Field(description="the same for all failures of a kind")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="the value, the cause and the way out")


@dataclass(eq=False)
class ProblemError(Exception):
    """A request that cannot be answered.

    Attributes:
        kind: a key of `KINDS`.
        detail: one sentence for the client: value, cause, way out.
        headers: further response headers.
        extra: further members of the problem document.
    """

    kind: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The problem document as plain values."""
        kind = KINDS[self.kind]
        return {
            "type": f"/docs#{self.kind}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
            **self.extra,
        }

    def response(self) -> Response:
        """The HTTP response."""
        status = KINDS[self.kind].status
        return JSONResponse(self.document(), status, dict(self.headers), MEDIA_TYPE)


def busy(detail: str, retry_after_s: int = 1) -> ProblemError:
    """A full queue: the client may come back after `retry_after_s` seconds."""
    return ProblemError("busy", detail, {"Retry-After": str(retry_after_s)})


def internal() -> ProblemError:
    """A fault of the service; shows nothing of its inside."""
    return ProblemError(
        "internal", "an unexpected fault; try again, and tell the operator if it stays"
    )


def from_status(status: int, headers: Mapping[str, str] | None = None) -> ProblemError:
    """A problem for an error that the web framework raised by its status alone."""
    known = {
        404: ("not-found", "no such path; the paths are listed at /docs"),
        405: ("method", "this path answers other methods; they are listed at /docs"),
    }
    phrase = HTTPStatus(status).phrase.lower()
    default = "internal" if status >= 500 else "bad-request"
    kind, detail = known.get(status, (default, f"the request was refused: {phrase}"))
    return ProblemError(kind, detail, dict(headers or {}))


def openapi_responses(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries for the failures that a route can answer with."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        entry = KINDS[kind]
        text = found.get(entry.status, {}).get("description")
        found[entry.status] = {
            "description": f"{text}; or: {entry.title}" if text else entry.title,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if kind in ("busy", "not-ready"):
            seconds = {"description": "seconds to wait", "schema": {"type": "string"}}
            found[entry.status]["headers"] = {"Retry-After": seconds}
    return found
