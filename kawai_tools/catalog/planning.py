"""Plans the pull of an entry: its files by their addresses, held to the digests that it pins."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from kawai_tools.catalog.entries import CatalogFile, Entry
from kawai_tools.errors import EntryGone, HubTokenRequired, InvalidSource, NotFound
from kawai_tools.events import Status
from kawai_tools.models.plan import Plan
from kawai_tools.models.planning import Planner
from kawai_tools.refs import HubFile, HubRepo, parse_source
from kawai_tools.transfer.hub import Hub
from kawai_tools.transfer.pulls import Job, Pull
from kawai_tools.transfer.remote_file import RemoteFile


def plan_entry(planner: Planner, entry: Entry, *, force: bool, has_token: bool) -> Plan:
    """What a pull of the entry fetches; ``has_token``: the hub is asked with a token.

    Raises what :class:`Planner` does, and ``EntryGone`` for a file that is there no more.
    """
    files = entry.row.files
    pins = {file.url: file.sha256 for file in files.all if file.sha256}
    proj = files.proj.url if files.proj else None
    with _gone(entry, has_token=has_token):
        return planner.plan(files.model[0].url, proj, force=force, pins=pins)


def remote_of(file: CatalogFile, hub: Hub) -> RemoteFile:
    """A file of an entry as the catalog tells of it; the hub is asked for what that leaves out."""
    source = parse_source(file.url, hub.endpoint)
    if isinstance(source, HubRepo):
        raise InvalidSource(f"{file.url} names no file")
    if file.sha256 is None or file.size_bytes is None:
        return hub.describe(source)
    fetch = hub.endpoint + source.url_path if isinstance(source, HubFile) else source.url
    return RemoteFile(source.url, fetch, file.size_bytes, file.sha256, None, None)


def job_of(entry: Entry, job: Job, *, has_token: bool) -> Job:
    """The work of such a plan: a file may also go while it is fetched."""

    def work(pull: Pull) -> Status:
        with _gone(entry, has_token=has_token):
            return job.work(pull)

    return replace(job, work=work)


@contextmanager
def _gone(entry: Entry, *, has_token: bool) -> Iterator[None]:
    """Say of a file that is missing that the entry is out of date."""
    try:
        yield
    except NotFound as error:
        row = entry.row
        if row.gated_model and not has_token:  # some hubs hide what they do not show
            page = row.web_page or row.files.model[0].url
            raise HubTokenRequired(
                f"{row.id} is gated, and no hub token is set",
                f"open {page}, accept its terms, and set HF_TOKEN to a token of that account",
            ) from error
        url = error.url or " or ".join(file.url for file in row.files.all)
        raise EntryGone(
            f"{url} is not there any more: {error.message}", "kawai catalog update may know a newer address"
        ) from error
