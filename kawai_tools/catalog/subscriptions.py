"""Keeps subscribed catalogs up to date: a copy is replaced by a good, newer one, and by nothing else.

Asked conditionally (RFC 9110, ``If-None-Match``). A copy is older than the one held if the server says so
(``Last-Modified``), or if it is one that the held copy has replaced.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from kawai_tools.catalog.entries import CatalogUpdate
from kawai_tools.catalog.kept import MOST_REPLACED, Kept, digest_of
from kawai_tools.catalog.lists import Lists
from kawai_tools.catalog.merging import terms_of
from kawai_tools.catalog.reading import MOST_BYTES, Malformed
from kawai_tools.catalog.schema import read_catalog
from kawai_tools.errors import BadResponse, BrokenCatalog, KawaiError, OlderCatalog
from kawai_tools.refs import PlainUrl
from kawai_tools.transfer.asking import Asker
from kawai_tools.transfer.hub import refusal
from kawai_tools.transfer.responses import Response

_AT_ONCE = 8
_STANDS = "the copy that is held stays in use"


class Subscriptions:
    """The subscribed catalogs of one configuration."""

    def __init__(self, lists: Lists, asker: Asker) -> None:
        """Nothing is asked yet."""
        self._lists = lists
        self._asker = asker

    def update(self) -> list[CatalogUpdate]:
        """Ask for every one of them, some at a time; what became of each."""
        self._lists.keeper.tidy(self._lists.subscriptions)
        return self._ask_all(keeps=True)

    def check(self) -> list[CatalogUpdate]:
        """What an update would come to: changes nothing."""
        return self._ask_all(keeps=False)

    def _ask_all(self, *, keeps: bool) -> list[CatalogUpdate]:
        urls = self._lists.subscriptions
        if not urls:
            return []
        with ThreadPoolExecutor(min(_AT_ONCE, len(urls)), "catalog") as pool:
            return list(pool.map(lambda url: self._look(url, keeps=keeps), urls))

    def _look(self, url: str, *, keeps: bool) -> CatalogUpdate:
        held = self._lists.keeper.read(url)
        count = self._count(held) if held else None
        try:
            kept, entries = self._fetch(url, held, count, keeps=keeps)
        except KawaiError as problem:
            if count is not None:
                problem.hint = f"{problem.hint}; {_STANDS}" if problem.hint else _STANDS
            return CatalogUpdate(url=url, entries=count or 0, changed=False, error=problem.info)
        changed = held is None or kept.text != held.text
        return CatalogUpdate(url=url, entries=entries, changed=changed, error=None)

    def _count(self, held: Kept) -> int | None:
        """The entries of a copy; ``None`` for one of the time of other rules, or of other settings."""
        try:
            return len(read_catalog(held.text.encode(), terms_of(self._lists, held.url))[0])
        except Malformed:
            return None

    def _fetch(self, url: str, held: Kept | None, count: int | None, *, keeps: bool) -> tuple[Kept, int]:
        """The copy that is to be held, and its entries; ``count`` are those of a held one that is good."""
        headers = {"If-None-Match": held.etag} if held and held.etag and count is not None else {}
        source = PlainUrl(url)

        def use(answer: Response) -> tuple[Kept, int]:
            if answer.status == 304 and held is not None and count is not None:  # noqa: PLR2004 - Not Modified
                return held, count
            if answer.status != 200:  # noqa: PLR2004 - OK
                raise BadResponse(
                    f"{url} answers with status {answer.status}", "check the address in the setting catalogs"
                )
            encoding = answer.header("Content-Encoding") or "identity"
            if encoding != "identity":
                raise BadResponse(f"{url} comes {encoding[:20]}-encoded though that was not asked for")
            return self._take(url, held, answer, keeps=keeps)

        return self._asker.ask(
            "GET", url, use, lambda answer: refusal(answer, source, has_token=False), headers=headers
        )

    def _take(self, url: str, held: Kept | None, answer: Response, *, keeps: bool) -> tuple[Kept, int]:
        """Take what the server sends, if it is a good catalog and no older one, and perhaps keep it."""
        data = answer.read(MOST_BYTES)
        try:
            entries, _ = read_catalog(data, terms_of(self._lists, url))
        except Malformed as error:
            line = f", line {error.line}" if error.line else ""
            raise BrokenCatalog(f"{url}{line}: {error.words}") from None
        text = data.decode("utf-8-sig")
        kept = Kept(
            url=url,
            text=text,
            etag=answer.header("ETag"),
            modified=_modified(answer),
            sha256=digest_of(text),
            replaced=_replaced(held),
        )
        if held is not None and held.text == kept.text:
            kept = msgspec.structs.replace(kept, replaced=held.replaced)
        elif held is not None and self._is_older(kept, held):
            raise OlderCatalog(
                f"{url} serves an older copy than the one that is held",
                f"if it is meant, remove {self._lists.keeper.path(url)} and run kawai catalog update",
            )
        if not keeps:
            return kept, len(entries)
        with self._lists.keeper.alone():
            meanwhile = self._lists.keeper.read(url)
            if meanwhile != held and meanwhile is not None and (count := self._count(meanwhile)) is not None:
                return meanwhile, count  # another has been quicker, and has asked later
            self._lists.keeper.write(kept)
        return kept, len(entries)

    @staticmethod
    def _is_older(new: Kept, held: Kept) -> bool:
        if new.modified and held.modified and new.modified != held.modified:
            return new.modified < held.modified
        return new.sha256 in held.replaced


def _replaced(held: Kept | None) -> list[str]:
    return [held.sha256, *held.replaced][:MOST_REPLACED] if held else []


def _modified(answer: Response) -> datetime | None:
    try:
        moment = parsedate_to_datetime(answer.header("Last-Modified") or "")
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
