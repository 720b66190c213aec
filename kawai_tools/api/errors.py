"""Where errors become answers: status and body, once for all routes."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler, Receive, Scope, Send

from kawai_tools.api.access import challenge
from kawai_tools.api.observing import seen
from kawai_tools.errors import (
    BodyTooLarge,
    ErrorBody,
    Internal,
    KawaiError,
    NotJson,
    RouteNotFound,
)

LINGER = 1.0
"""Seconds for which what a client still sends is thrown away before its connection is closed.

Closing at once makes the kernel reset the connection, and clients that are still sending then often
lose the answer that says why.
"""


class _LastAnswer(Response):
    """An answer after which the connection is closed, though the client may still be sending."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send all of the answer, give the client a moment to read it, then end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})


def error_response(error: KawaiError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that reports this error."""
    body = msgspec.json.encode(ErrorBody(error.info))
    if isinstance(error, (BodyTooLarge, NotJson)):  # what follows may be endless
        return refusal(error)
    again = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return Response(body, error.status, {**challenge(error), **again, **(headers or {})}, "application/json")


def refusal(error: KawaiError) -> Response:
    """The answer that reports this error and ends the connection, whose further bytes nobody can trust."""
    body = msgspec.json.encode(ErrorBody(error.info))
    headers = {**challenge(error), "connection": "close"}
    return _LastAnswer(body, error.status, headers, "application/json")


async def _known(request: Request, error: Exception) -> Response:
    seen(request.scope).error = cast("KawaiError", error).code
    return error_response(cast("KawaiError", error))


async def _no_route(request: Request, _: Exception) -> Response:
    return error_response(RouteNotFound(f"there is nothing at {request.scope['path'][:200]}"))


async def _bug(_: Request, __: Exception) -> Response:
    return error_response(Internal("kawai failed in a way it should not", "the log has the traceback"))


HANDLERS: Mapping[type[Exception], ExceptionHandler] = {
    KawaiError: _known,
    HTTPException: _no_route,  # the router's only one: every path answers wrong methods itself
    Exception: _bug,  # Starlette raises it again afterwards, and uvicorn logs the traceback
}
"""What Starlette is to do with exceptions: one entry serves all of our own."""
