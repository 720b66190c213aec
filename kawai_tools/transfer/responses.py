"""What a server answers, and what it means when it does not."""

import http.client
import ssl
from collections.abc import Callable
from typing import Self

from kawai_tools.errors import BadCertificate, BadResponse, KawaiError, Unreachable, UpstreamTimeout
from kawai_tools.transfer.egress import Hop, origin_of

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MAX_TEXT = 32 << 20
"""The longest body that is read into memory."""


NETWORK_ERRORS = (OSError, http.client.HTTPException, ValueError)
"""What sockets, TLS and http.client raise."""


def translate(url: str, error: Exception, proxy: str | None = None) -> KawaiError:
    """One of ``NETWORK_ERRORS`` as an error that names the server, or the proxy that was not reached."""
    host = origin_of(url).authority
    hint = "check the network and try again"
    if proxy is not None:
        host = f"the proxy {origin_of(proxy).authority}"
        hint = "check HTTP_PROXY and HTTPS_PROXY; NO_PROXY names hosts that are reached without one"
    if isinstance(error, ssl.SSLCertVerificationError):
        return BadCertificate(
            f"{host} shows a certificate that cannot be trusted: {error.verify_message}",
            "if your network has a certificate authority of its own, name its file with SSL_CERT_FILE",
        )
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"{host} does not answer: {error}", hint if proxy else "try again later")
    if isinstance(error, (OSError, http.client.IncompleteRead)):
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Unreachable(f"{host} cannot be reached: {reason}", hint)
    # its words may repeat what was sent, credentials included
    return BadResponse(f"{host} answers in a way that is not HTTP ({type(error).__name__})")


class Response:
    """An answer whose body has not been read. Close it; one read to its end gives its connection back."""

    def __init__(
        self,
        url: str,
        answer: http.client.HTTPResponse,
        via: Hop | None,
        done: Callable[[bool], None],
        *,
        bodiless: bool,
    ) -> None:
        """Wrap http.client's answer.

        ``via`` is the redirect that led here; ``done`` is told whether the connection can serve again.
        """
        self.url = url
        self.via = via
        self.status = answer.status
        self.headers = answer.headers
        self._answer = answer
        self._done: Callable[[bool], None] | None = done
        self.length = None if bodiless or answer.chunked else answer.length
        self._left = 0 if bodiless else self.length

    def header(self, name: str) -> str | None:
        """One header's value."""
        return self.headers.get(name)

    @property
    def strong_etag(self) -> str | None:
        """The ETag, unless it is weak."""
        etag = self.header("ETag")
        return etag if etag and not etag.startswith("W/") else None

    def read_some(self, buffer: memoryview) -> int:
        """Fill the start of ``buffer`` with what has come, waiting for at least a byte; 0 at the end.

        Raises ``Unreachable`` for a body that ends before its length, ``UpstreamTimeout`` for one that
        stalls, ``BadResponse`` for broken framing.
        """
        if self._left == 0:
            return 0
        try:
            if self._left is None:
                chunk = self._answer.read1(len(buffer))
                buffer[: len(chunk)] = chunk
                return len(chunk)
            count: int = self._answer.fp.readinto1(buffer[: self._left])
        except NETWORK_ERRORS as error:
            raise translate(self.url, error) from error
        if count == 0:
            raise Unreachable(f"{origin_of(self.url).authority} cut the connection {self._left} bytes early")
        self._left -= count
        return count

    def read(self, limit: int = MAX_TEXT) -> bytes:
        """The whole body. Raises ``BadResponse`` if it is longer than ``limit`` bytes."""
        body, view = bytearray(), memoryview(bytearray(1 << 16))
        while count := self.read_some(view):
            body += view[:count]
            if len(body) > limit:
                raise BadResponse(f"{origin_of(self.url).authority} sends more than {limit} bytes")
        return bytes(body)

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else end it."""
        done, self._done = self._done, None
        if done is not None:
            finished = self._left == 0 or (self._left is None and self._answer.isclosed())
            self._answer.close()
            done(finished and not self._answer.will_close)

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
