"""Plans the pull of an entry: its files by their addresses, held to the digests that it pins."""

from kawai_tools.catalog.entries import Entry
from kawai_tools.errors import EntryGone, HubTokenRequired, NotFound
from kawai_tools.models.plan import Plan
from kawai_tools.models.planning import Planner


def plan_entry(planner: Planner, entry: Entry, *, force: bool, has_token: bool) -> Plan:
    """What a pull of the entry fetches; ``has_token``: the hub is asked with a token.

    Raises what :class:`Planner` does, and ``EntryGone`` for a file that is there no more.
    """
    files = entry.row.files
    pins = {file.url: file.sha256 for file in files.all if file.sha256}
    try:
        return planner.plan(
            files.model[0].url, files.proj.url if files.proj else None, force=force, pins=pins
        )
    except NotFound as error:
        if entry.row.gated_model and not has_token:  # some hubs hide what they do not show
            page = entry.row.web_page
            raise HubTokenRequired(
                f"{entry.row.id} is gated, and no hub token is set",
                f"open {page}, accept its terms, and set HF_TOKEN to a token of that account",
            ) from error
        urls = " or ".join(file.url for file in files.all)
        raise EntryGone(
            f"{urls} is not there any more: {error.message}",
            "kawai catalog update may know a newer address",
        ) from error
