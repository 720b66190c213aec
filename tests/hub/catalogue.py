"""The faults by name, as the command line takes them: `NAME[:ARGUMENT][*TIMES]`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from .exchange import Amount

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SPEC = re.compile(r"(?P<name>[a-z_-]+)(?::(?P<argument>.*?))?(?:\*(?P<times>\d+))?\Z", re.DOTALL)


@dataclass(frozen=True)
class Kind:
    """How a named fault is made of its argument, and what the argument is if none is given."""

    make: Callable[[str], Fault]
    about: str
    argument: str = ""
    default: str = ""


def count_bytes(text: str) -> int:
    """Read `4096`, `64K`, `1M` or `2G` as a number of bytes."""
    found = re.fullmatch(r"(\d+)([KMG]?)B?", text.strip().upper())
    if not found:
        raise ValueError(f"{text!r} is not a size such as 4096, 64K or 20M")
    return int(found[1]) * _UNITS[found[2]]


def amount(text: str) -> Amount:
    """Read `40%` as a share of the body, anything else as `count_bytes` does."""
    return float(text[:-1]) / 100 if text.endswith("%") else count_bytes(text)


def _drip(text: str) -> Fault:
    return Fault.drip(float(text))


def _status(text: str) -> Fault:
    code, _, after = text.partition(",")
    return Fault.status(int(code), {"Retry-After": after} if after else None)


KINDS: dict[str, Kind] = {
    "status": Kind(_status, "answer every request with this status", "CODE[,RETRY-AFTER]", "503"),
    "refuse": Kind(
        lambda text: Fault.refuse(float(text)),
        "reset the connection, then refuse connections for a while",
        "SECONDS",
        "5",
    ),
    "head-refused": Kind(lambda _: Fault.head_refused(), "answer 405 to HEAD"),
    "cut": Kind(
        lambda text: Fault.cut(amount(text)),
        "close the connection inside the body; Content-Length is right",
        "PLACE",
        "40%",
    ),
    "reset": Kind(lambda text: Fault.cut(amount(text), reset=True), "likewise, by RST", "PLACE", "40%"),
    "truncate": Kind(
        lambda text: Fault.truncate(amount(text)), "state no Content-Length and close early", "PLACE", "40%"
    ),
    "silent": Kind(
        lambda text: Fault.silent(amount(text) if text else None),
        "say nothing more from a place in the body on; without PLACE, not even a status",
        "PLACE",
        "",
    ),
    "drip": Kind(_drip, "send the body a byte at a time", "SECONDS", "10"),
    "endless": Kind(lambda _: Fault.endless(), "send zeros for ever, chunked"),
    "endless-length": Kind(
        lambda _: Fault.endless(chunked=False), "likewise, under a Content-Length of a pebibyte"
    ),
    "extra": Kind(
        lambda text: Fault.surplus(count_bytes(text)),
        "send more bytes than the file has, and say so in Content-Length",
        "BYTES",
        "1K",
    ),
    "extra-hidden": Kind(
        lambda text: Fault.surplus(count_bytes(text), "length"),
        "likewise, after a Content-Length that is right",
        "BYTES",
        "1K",
    ),
    "extra-chunked": Kind(
        lambda text: Fault.surplus(count_bytes(text), "chunked"),
        "likewise, chunked, without Content-Length",
        "BYTES",
        "1K",
    ),
    "delay": Kind(
        lambda text: Fault.delay(float(text)), "answer rightly, so many seconds later", "SECONDS", "0.1"
    ),
    "flip": Kind(
        lambda text: Fault.flip(amount(text)), "change a byte of the file at this place", "PLACE", "50%"
    ),
    "gzip": Kind(lambda _: Fault.gzip(), "encode the body by gzip, unasked"),
    "login-page": Kind(lambda _: Fault.login_page(), "answer 200 with an HTML page in place of the file"),
    "pointer": Kind(lambda _: Fault.pointer(), "answer 200 with the LFS pointer text in place of the file"),
    "ignore-range": Kind(lambda _: Fault.ignore_range(), "answer 200 and the whole file to a Range request"),
    "no-ranges": Kind(lambda _: Fault.no_ranges(), "likewise, and leave Accept-Ranges out"),
    "no-accept-ranges": Kind(
        lambda _: Fault.no_accept_ranges(), "leave Accept-Ranges out, though ranges are served"
    ),
    "shift-range": Kind(
        lambda text: Fault.shift_range(count_bytes(text)),
        "answer 206 from so many bytes further on",
        "BYTES",
        "1",
    ),
    "shift-range-lie": Kind(
        lambda text: Fault.shift_range(count_bytes(text), lie=True),
        "likewise, under the Content-Range that was asked for",
        "BYTES",
        "1",
    ),
    "short-range": Kind(
        lambda text: Fault.short_range(amount(text)),
        "answer a 206 that covers only the first part of the range",
        "PLACE",
        "50%",
    ),
    "no-content-range": Kind(lambda _: Fault.no_content_range(), "answer 206 without Content-Range"),
    "range-refused": Kind(lambda _: Fault.range_refused(), "answer 416 to every Range request"),
    "etag": Kind(
        lambda text: Fault.etag(f'"{text}"'), "have this ETag, and answer If-Range by it", "VALUE", "changed"
    ),
    "weak-etag": Kind(lambda _: Fault.weak_etag(), "have a weak ETag"),
    "no-etag": Kind(lambda _: Fault.no_etag(), "have no ETag"),
    "disposition": Kind(
        Fault.disposition, "send this Content-Disposition", "VALUE", 'attachment; filename="../../escaped"'
    ),
    "redirect": Kind(Fault.redirect, "redirect every request to this URL", "URL", "file:///etc/hostname"),
    "redirect-loop": Kind(lambda _: Fault.redirect_loop(), "redirect every request to itself"),
    "expire": Kind(
        lambda text: Fault.expire(amount(text) if text else None),
        "let all signed URLs expire inside the body, which is cut; without PLACE, before the answer",
        "PLACE",
        "",
    ),
}


def parse_fault(text: str) -> Fault:
    """Make the fault that a text describes; raises ValueError with the reason where it does not."""
    found = _SPEC.match(text)
    kind = KINDS.get(found["name"].replace("_", "-")) if found else None
    if not found or not kind:
        raise ValueError(f"there is no fault {text!r}; --list-faults names them")
    argument = found["argument"]
    if argument and not kind.argument:
        raise ValueError(f"the fault {found['name']} takes no argument")
    fault = kind.make(kind.default if argument is None else argument)
    return replace(fault, times=int(found["times"])) if found["times"] else fault


def describe_faults() -> str:
    """List the faults: name, argument, what they do, and the argument's default."""
    rows = []
    for name, kind in KINDS.items():
        usage = f"{name}[:{kind.argument}]" if kind.argument else name
        rows.append(f"{usage:30} {kind.about}{f' (default {kind.default})' if kind.default else ''}")
    return "\n".join(rows)
