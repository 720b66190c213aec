"""The words of settings: what a text must be to be a size, an address, a list of hosts.

Each function raises ``ValueError`` with what is wanted, for a message to go on with.
"""

import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import urlsplit

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_size(text: str) -> int:
    """Bytes from ``20M``, ``1.5G``, ``512KiB`` or a plain number; ``K`` is 1,000 and ``Ki`` 1,024."""
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]I?)?B?", text.strip().upper())
    if match is None or (match[2] or "") not in _UNITS:
        raise ValueError("a number of bytes such as 20M, 1.5G or 512KiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def parse_rate(text: str) -> int:
    """Bytes per second, at least 1, as :func:`parse_size` reads them; ``/s`` may follow."""
    size = parse_size(text.strip().removesuffix("/s"))
    if size < 1:
        raise ValueError("a rate above zero such as 20M")
    return size


_TIMES = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_duration(text: str) -> timedelta:
    """A time above zero from ``90m``, ``12h``, ``30d`` or ``4w``."""
    match = re.fullmatch(r"([0-9]{1,6})\s*([mhdw])", text.strip().lower())
    if match is None or not int(match[1]):
        raise ValueError("a time such as 90m, 12h, 30d or 4w")
    return timedelta(**{_TIMES[match[2]]: int(match[1])})


def parse_bool(text: str) -> bool:
    """True or false, in the words that people use."""
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False}
    value = {**words, "off": False, "": False}.get(text.strip().lower())
    if value is None:
        raise ValueError("true or false")
    return value


def parse_text(text: str) -> str:
    """One line, without the blanks around it."""
    if not text.strip() or any(ord(char) < ord(" ") for char in text):
        raise ValueError("a text of one line")
    return text.strip()


def parse_path(text: str) -> Path:
    """A path, absolute; ``~`` is home."""
    try:
        return Path(parse_text(text)).expanduser().absolute()
    except (RuntimeError, OSError):  # ~ of nobody; a working directory that is gone
        raise ValueError("a directory that can be told") from None


def parse_names(text: str) -> tuple[str, ...]:
    """Names between commas, in lower case and as DNS spells them."""
    return tuple(_spelled(name.strip().lower()) for name in text.split(",") if name.strip())


def _spelled(name: str) -> str:
    """A name as DNS has it: without a dot at its end, and in ASCII."""
    name = name.rstrip(".") or name
    try:
        return name if name.isascii() else name.encode("idna").decode()
    except UnicodeError:
        raise ValueError("names that DNS could know") from None


def is_address(url: str) -> bool:
    """Whether host and port of an http(s) address can be told apart."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_host(text: str) -> str:
    """A host, without the brackets of an IPv6 address."""
    host = parse_text(text)
    return host[1:-1] if host[0] + host[-1] == "[]" else host


def parse_hosts(text: str) -> tuple[str, ...]:
    """Names by which a server is known, each perhaps with a port."""
    names = parse_names(text)
    form = re.compile(
        r"\w([\w.-]*\w)?\.?(:\d{1,5})?|\[[0-9a-f:]+\](:\d{1,5})?|[0-9a-f:]*:[0-9a-f:]*:[0-9a-f:]*"
    )
    if not all(form.fullmatch(name) for name in names) or (text and not names):
        raise ValueError("names of hosts such as models.example.org")
    return names


def parse_origins(text: str) -> tuple[str, ...]:
    """Origins of web pages."""
    origins = parse_names(text)
    if not all(re.fullmatch(r"https?://[^/?#\s@*]+", origin) for origin in origins):
        raise ValueError("origins such as https://chat.example.org")
    return origins


def parse_urls(text: str) -> tuple[str, ...]:
    """Addresses between commas or blanks, each once."""
    urls = tuple(dict.fromkeys(url for url in re.split(r"[,\s]+", text) if url))
    form = re.compile(r"https?://[^/?#\s@]+(/[^#\s]*)?", re.IGNORECASE)
    if not all(form.fullmatch(url) and is_address(url) for url in urls):
        raise ValueError("addresses such as https://lists.example.org/catalog.yaml")
    return urls


def parse_url(text: str) -> str:
    """One address, without a slash at its end."""
    url = parse_text(text).rstrip("/")
    if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", url, re.IGNORECASE) or not is_address(url):
        raise ValueError("an address such as https://hub.example.org")
    return url


SERVER_PORT = 11435
"""Where kawai serve listens if nothing else is said."""


def parse_server(text: str) -> str:
    """The address of a kawai, without a slash at its end; a bare name stands for all of it."""
    url = parse_text(text)
    if "://" not in url:
        host, colon, port = url.rpartition(":")
        has_port = bool(colon) and port.isdigit() and not host.endswith(":")
        url = f"http://{url}" if has_port else f"http://{url}:{SERVER_PORT}"
    try:
        return parse_url(url).removesuffix("/v1")  # as OpenAI clients are told
    except ValueError:
        raise ValueError("the address of a kawai such as http://box.example.org:11435") from None


def parse_proxy(text: str) -> str:
    """The address of an HTTP proxy; ``http://`` may be left out."""
    url = parse_text(text)
    url = url if "://" in url else f"http://{url}"
    if not re.fullmatch(r"http://[^/?#\s]+/?", url, re.IGNORECASE):
        raise ValueError("the address of an HTTP proxy such as http://proxy.example.org:3128")
    return url.rstrip("/")


def between(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text.strip()) or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return parse


ENGINES = ("auto", "llama-server", "xllamacpp", "llama-cpp-python")


def parse_engine(text: str) -> str:
    """The name of what runs models."""
    name = text.strip().lower()
    if name not in ENGINES:
        raise ValueError(f"one of {', '.join(ENGINES)}")
    return name


def parse_seconds(text: str) -> int:
    """A number of seconds, or -1 for no end."""
    if not re.fullmatch(r"-1|\d{1,9}", text.strip()):
        raise ValueError("a number of seconds, or -1")
    return int(text)


class Bounds(NamedTuple):
    """What a number may be."""

    low: float
    high: float
    is_whole: bool = False

    def check(self, value: object) -> int | float:
        """The number, if it is one. Raises ``ValueError`` saying what it must be."""
        kinds: tuple[type, ...] = (int,) if self.is_whole else (int, float)
        if type(value) not in kinds or not self.low <= cast("float", value) <= self.high:
            raise ValueError(
                f"a {'whole ' if self.is_whole else ''}number from {self.low:g} to {self.high:g}"
            )
        return cast("float", value)


SAMPLING: Mapping[str, Bounds] = {
    "temperature": Bounds(0, 10),
    "top_k": Bounds(0, 1_000_000, is_whole=True),
    "top_p": Bounds(0, 1),
    "min_p": Bounds(0, 1),
    "repeat_penalty": Bounds(0, 10),
    "presence_penalty": Bounds(-2, 2),
    "frequency_penalty": Bounds(-2, 2),
}
"""How the next token is chosen, where a request does not say."""
