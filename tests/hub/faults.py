"""Misbehaviours: each a small value that says when it strikes and what it makes of the answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Unpack

from .bodies import chain, flipped, gzipped, zeros
from .cdn import unsatisfiable
from .exchange import Amount, Exchange, Where, asked_range, place_in
from .messages import BEFORE_HEAD, Answer, Blob, Call, Manner, ServerName, Span, Stream, text_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HUGE = 1 << 50
LOGIN_PAGE = "<!doctype html><title>Sign in</title><form method=post><input name=password></form>\n"


@dataclass(frozen=True)
class Fault:
    """A misbehaviour; made by the static methods, whose keywords `Where` lists.

    `wants` says what an answer must be for the fault to strike: any, one about a file, one with a file's
    bytes, or one to a Range request. `path` is looked for in the path of the URL, as sent.
    """

    name: str
    twist: Callable[[Exchange], Answer] = field(repr=False)
    wants: Literal["any", "file", "body", "range"] = "any"
    server: ServerName | None = None
    method: str | None = None
    path: str = ""
    times: int | None = None
    skip: int = 0

    def matches(self, call: Call, answer: Answer) -> bool:
        """Tell whether the fault is about this call and its answer."""
        if (self.server or call.server, self.method or call.method) != (call.server, call.method):
            return False
        met = {
            "any": True,
            "file": answer.blob is not None,
            "body": answer.blob is not None and call.method == "GET",
            "range": answer.blob is not None and "range" in call.headers,
        }
        return self.path in call.path and met[self.wants]

    @staticmethod
    def status(
        code: int, headers: Mapping[str, str] | None = None, body: str = "", **where: Unpack[Where]
    ) -> Fault:
        """Answer with this status: 500, 503, 404, 401, 429 with Retry-After and so on."""
        plain = text_answer(code, body or f"status {code}")
        answer = replace(plain, headers={**plain.headers, **(headers or {})})
        return Fault("status", lambda _: answer, **where)

    @staticmethod
    def delay(seconds: float, **where: Unpack[Where]) -> Fault:
        """Answer rightly, and so much later: a hub that is far away."""
        return Fault("delay", lambda ex: ex.respond(ex.call).delivered(delay=seconds), **where)

    @staticmethod
    def refuse(seconds: float, **where: Unpack[Where]) -> Fault:
        """Reset the connection without an answer and refuse new ones for a while."""

        def twist(ex: Exchange) -> Answer:
            return text_answer(503, "").delivered(
                cut_at=BEFORE_HEAD, reset=True, then=lambda: ex.take_down(seconds)
            )

        return Fault("refuse", twist, **where)

    @staticmethod
    def head_refused(**where: Unpack[Where]) -> Fault:
        """Answer 405 to HEAD."""
        return replace(Fault.status(405, {"Allow": "GET"}, **where), name="head_refused", method="HEAD")

    @staticmethod
    def cut(at: Amount, *, reset: bool = False, **where: Unpack[Where]) -> Fault:
        """Close the connection (`reset`: by RST) inside a body whose Content-Length is right."""
        return _body("cut", lambda _, a: a.delivered(cut_at=place_in(at, a), reset=reset), where)

    @staticmethod
    def truncate(at: Amount, **where: Unpack[Where]) -> Fault:
        """State no length and close early: the end looks like any other."""
        return _body("truncate", lambda _, a: a.delivered(framing="close", cut_at=place_in(at, a)), where)

    @staticmethod
    def silent(after: Amount | None = None, **where: Unpack[Where]) -> Fault:
        """Fall silent after some of the body, or with None before the head; the connection stays."""
        if after is None:
            return Fault("silent", lambda ex: ex.answer().delivered(silent_at=BEFORE_HEAD), **where)
        return _body("silent", lambda _, a: a.delivered(silent_at=place_in(after, a)), where)

    @staticmethod
    def drip(seconds: float, after: Amount = 0, **where: Unpack[Where]) -> Fault:
        """Send a single byte every so many seconds, from some place on."""
        return _body("drip", lambda _, a: a.delivered(pause=seconds, pause_after=place_in(after, a)), where)

    @staticmethod
    def endless(*, chunked: bool = True, **where: Unpack[Where]) -> Fault:
        """Send zeros for ever, chunked or under a Content-Length of a pebibyte."""
        manner = Manner(framing="chunked") if chunked else Manner(claim=HUGE)

        def twist(_: Exchange, answer: Answer) -> Answer:
            return replace(answer, body=Stream(zeros), manner=manner)

        return _body("endless", twist, where)

    @staticmethod
    def surplus(
        count: int,
        framing: Literal["honest", "length", "chunked", "close"] = "honest",
        **where: Unpack[Where],
    ) -> Fault:
        """Send `count` bytes more than the file has: as part of Content-Length, after it, or without one."""

        def twist(_: Exchange, answer: Answer) -> Answer:
            body, length = answer.body, answer.body.length or 0
            more = Stream(lambda size: chain(body.pieces(size), [b"+" * count]), length + count)
            manner = (
                Manner(claim=length)
                if framing == "length"
                else Manner(framing="length" if framing == "honest" else framing)
            )
            return replace(answer, body=more, manner=manner)

        return _body("surplus", twist, where)

    @staticmethod
    def flip(at: Amount = 0.5, **where: Unpack[Where]) -> Fault:
        """Change the byte at this place of the file; size and headers stay right."""

        def twist(_: Exchange, blob: Blob, answer: Answer) -> Answer:
            if not isinstance(answer.body, Span):
                return answer
            span = answer.body
            place = (at if isinstance(at, int) else int(at * blob.size)) - span.start
            return replace(answer, body=Stream(lambda size: flipped(span.pieces(size), place), span.length))

        return _about("flip", twist, "body", where)

    @staticmethod
    def gzip(**where: Unpack[Where]) -> Fault:
        """Encode the body by gzip, though identity was asked."""

        def twist(_: Exchange, answer: Answer) -> Answer:
            plain = answer.body
            packed = replace(answer, body=Stream(lambda size: gzipped(plain.pieces(size))))
            return packed.having("Content-Encoding", "gzip").delivered(framing="chunked")

        return _body("gzip", twist, where)

    @staticmethod
    def login_page(**where: Unpack[Where]) -> Fault:
        """Answer 200 with an HTML page in place of the file, as a captive portal does."""
        return _about("login_page", lambda *_: text_answer(200, LOGIN_PAGE, "text/html"), "file", where)

    @staticmethod
    def pointer(**where: Unpack[Where]) -> Fault:
        """Answer 200 with the LFS pointer text in place of the file."""
        return _about("pointer", lambda _, blob, __: text_answer(200, blob.pointer.decode()), "file", where)

    @staticmethod
    def ignore_range(**where: Unpack[Where]) -> Fault:
        """Answer 200 and the whole file to a Range request."""
        return _range("ignore_range", lambda ex, _: ex.respond(ex.call.without("range")), where)

    @staticmethod
    def no_ranges(**where: Unpack[Where]) -> Fault:
        """Know nothing of ranges: no Accept-Ranges, and 200 to every request."""

        def twist(ex: Exchange, *_: object) -> Answer:
            return ex.respond(ex.call.without("range")).having("Accept-Ranges", None)

        return _about("no_ranges", twist, "file", where)

    @staticmethod
    def no_accept_ranges(**where: Unpack[Where]) -> Fault:
        """Leave Accept-Ranges out, though ranges are served."""
        return _header("no_accept_ranges", "Accept-Ranges", None, where)

    @staticmethod
    def shift_range(by: int = 1, *, lie: bool = False, **where: Unpack[Where]) -> Fault:
        """Answer 206 from `by` bytes further on (negative: back); with `lie` Content-Range hides it."""

        def twist(ex: Exchange, blob: Blob, answer: Answer) -> Answer:
            start, stop = asked_range(ex, blob)
            moved = max(0, min(blob.size - 1, start + by))
            last = min(blob.size, moved + stop - start) - 1
            shifted = ex.respond(ex.call.having("range", f"bytes={moved}-{last}"))
            return shifted.having("Content-Range", answer.header("Content-Range")) if lie else shifted

        return _about("shift_range", twist, "range", where)

    @staticmethod
    def short_range(at: Amount = 0.5, **where: Unpack[Where]) -> Fault:
        """Answer a 206 that is in order and ends before the range that was asked does."""

        def twist(ex: Exchange, blob: Blob, _: Answer) -> Answer:
            start, stop = asked_range(ex, blob)
            count = max(1, at if isinstance(at, int) else int(at * (stop - start)))
            return ex.respond(ex.call.having("range", f"bytes={start}-{min(stop, start + count) - 1}"))

        return _about("short_range", twist, "range", where)

    @staticmethod
    def no_content_range(**where: Unpack[Where]) -> Fault:
        """Answer 206 without Content-Range."""
        return _range("no_content_range", lambda _, a: a.having("Content-Range", None), where)

    @staticmethod
    def range_refused(**where: Unpack[Where]) -> Fault:
        """Answer 416 to every Range request."""
        return _about("range_refused", lambda _, blob, a: unsatisfiable(a.headers, blob), "range", where)

    @staticmethod
    def etag(value: str | None, **where: Unpack[Where]) -> Fault:
        """Have this ETag (quotes included; None: have none) and answer If-Range by it; `skip` delays it."""

        def twist(ex: Exchange, *_: object) -> Answer:
            strong = value is not None and not value.startswith("W/")
            condition = ex.call.headers.get("if-range")
            same = condition is None or (strong and condition == value)
            call = ex.call.without("if-range", *(() if same else ("range",)))
            return ex.respond(call).having("ETag", value)

        return _about("etag", twist, "file", where)

    @staticmethod
    def weak_etag(**where: Unpack[Where]) -> Fault:
        """Have a weak ETag."""
        return replace(Fault.etag('W/"weak"', **where), name="weak_etag")

    @staticmethod
    def no_etag(**where: Unpack[Where]) -> Fault:
        """Have no ETag."""
        return replace(Fault.etag(None, **where), name="no_etag")

    @staticmethod
    def disposition(value: str, **where: Unpack[Where]) -> Fault:
        """Name the file by this Content-Disposition."""
        return _header("disposition", "Content-Disposition", value, where)

    @staticmethod
    def redirect(to: str, status: int = 302, **where: Unpack[Where]) -> Fault:
        """Redirect to this URL, whatever it is; an answer that redirects already keeps its other headers."""

        def twist(ex: Exchange) -> Answer:
            answer = ex.answer()
            if answer.header("Location") is None:
                answer = text_answer(status, f"Found. Redirecting to {to}")
            return replace(answer, status=status).having("Location", to)

        return Fault("redirect", twist, **where)

    @staticmethod
    def redirect_loop(**where: Unpack[Where]) -> Fault:
        """Redirect every request to itself."""

        def twist(ex: Exchange) -> Answer:
            target = ex.call.path + ("?" + ex.call.query if ex.call.query else "")
            return text_answer(302, "Found", Location=target)

        return Fault("redirect_loop", twist, **where)

    @staticmethod
    def expire(after: Amount | None = None, **where: Unpack[Where]) -> Fault:
        """Let every signed URL expire: inside a body, which is cut, or with None before the answer."""
        if after is not None:
            return _body(
                "expire", lambda ex, a: a.delivered(cut_at=place_in(after, a), then=ex.expire_urls), where
            )

        def twist(ex: Exchange) -> Answer:
            ex.expire_urls()
            return ex.answer()

        return Fault("expire", twist, "file", **where)


def _about(
    name: str,
    twist: Callable[[Exchange, Blob, Answer], Answer],
    wants: Literal["file", "body", "range"],
    where: Where,
) -> Fault:
    def on_file(ex: Exchange) -> Answer:
        answer = ex.answer()
        # an earlier fault may have taken the file away
        return twist(ex, answer.blob, answer) if answer.blob else answer

    return Fault(name, on_file, wants, **where)


def _body(name: str, twist: Callable[[Exchange, Answer], Answer], where: Where) -> Fault:
    return _about(name, lambda ex, _, answer: twist(ex, answer), "body", where)


def _range(name: str, twist: Callable[[Exchange, Answer], Answer], where: Where) -> Fault:
    return _about(name, lambda ex, _, answer: twist(ex, answer), "range", where)


def _header(name: str, header: str, value: str | None, where: Where) -> Fault:
    return _about(name, lambda _, __, answer: answer.having(header, value), "file", where)
