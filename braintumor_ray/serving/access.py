"""The outermost layer: limits headers, checks the token, hides exceptions from clients."""

import hashlib
import hmac
import logging
import time
import traceback
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braintumor_ray.serving.problems import ProblemError, internal

_MOST_HEADER_BYTES = 32 * 1024
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)

logger = logging.getLogger(__name__)


class AccessMiddleware:
    """ASGI middleware.

    Args:
        app: what it guards.
        digest: SHA-256 of the token in hex; None: no token is asked for.
        open_paths: paths that answer without a token.
    """

    def __init__(self, app: ASGIApp, digest: str | None, open_paths: Collection[str]) -> None:
        self._app = app
        self._digest = digest
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name for name, _ in message["headers"]}
                extra = [pair for pair in _SECURITY if pair[0] not in names]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, guarded)
        except ProblemError as problem:
            await problem.response()(scope, receive, guarded)
        except Exception as error:
            # The type and place only: messages of foreign exceptions may quote what was uploaded.
            logger.error(  # noqa: TRY400
                "request failed: %s at %s", type(error).__name__, _place(error)
            )
            if not started:  # else the framework has answered with the same problem
                await internal().response()(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _MOST_HEADER_BYTES:
            raise ProblemError(
                "large-headers", f"over {_MOST_HEADER_BYTES} bytes of headers; send fewer"
            )
        if self._digest is None or scope["path"] in self._open:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        digest = hashlib.sha256(token.strip()).hexdigest()
        # Compared in constant time, before the scheme is looked at: timing reveals nothing.
        matches = hmac.compare_digest(digest, self._digest)
        if not (matches and scheme.lower() == b"bearer"):
            cause = "the token is not the right one" if given else "no token came with the request"
            raise ProblemError(
                "token",
                f"{cause}; send the header 'Authorization: Bearer TOKEN'",
                {"WWW-Authenticate": "Bearer"},
            )


class MeteredApp:
    """ASGI middleware that reports each answer: route, code, seconds.

    Args:
        app: what answers.
        routes: paths that are named; all others are 'other', so that nobody can make up labels.
        answered: called when an answer has been sent.
    """

    def __init__(
        self, app: ASGIApp, routes: Collection[str], answered: Callable[[str, int, float], None]
    ) -> None:
        self._app, self._routes, self._answered = app, frozenset(routes), answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, codes = time.perf_counter(), list[int]()

        async def noticed(message: Message) -> None:
            if message["type"] == "http.response.start":
                codes.append(message["status"])
            await send(message)

        await self._app(scope, receive, noticed)
        route = scope["path"] if scope["path"] in self._routes else "other"
        for code in codes:
            self._answered(route, code, time.perf_counter() - started)


def _place(error: Exception) -> str:
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return "nowhere"
    frame, line = frames[-1]
    return f"{frame.f_globals.get('__name__')}:{line}"
