"""One file somewhere else: a leaf, so that what comes from no network needs none of its modules."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RemoteFile:
    """What a server says of one file before it is fetched.

    ``url`` is the canonical address, ``fetch`` the one that is really asked, ``commit`` the revision it
    was pinned to, ``etag`` a strong validator of a plain URL (a hub's file needs none: it has a commit).
    """

    url: str
    fetch: str
    size: int
    sha256: str | None
    commit: str | None
    etag: str | None
