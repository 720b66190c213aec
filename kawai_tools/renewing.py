"""Other settings for a workspace in use: what is loaded, pulled or said stays, all else is made anew."""

from functools import cached_property

from kawai_tools.settings import Settings
from kawai_tools.workspace import WAYS_OUT, Workspace

_LASTING = frozenset(
    ["pulls", "layout", "models", "pool", "tokens", "machine", "bundles", "journals", "_runners"]
)
"""Nouns that outlive a change of settings: they hold what others use, or know of the disk only."""


def renewed(workspace: Workspace, settings: Settings) -> Workspace:
    """One with other settings that shares what lasts. Reads files: not for an event loop."""
    made = workspace.alike(settings)
    vars(made).update({name: noun for name, noun in vars(workspace).items() if name in _LASTING})
    made.warm()
    return made


def renew(workspace: Workspace, other: Workspace) -> None:
    """Be as the one that :func:`renewed` made. In the event loop's thread, as it changes the pool."""
    before = [vars(workspace)[name] for name in WAYS_OUT if name in vars(workspace)]
    vars(workspace).update(vars(other))
    for way in before:
        way.close()
    for name in vars(workspace).keys() - vars(other).keys() - _LASTING:
        if isinstance(getattr(Workspace, name, None), cached_property):
            del vars(workspace)[name]
    if "pool" in vars(workspace):
        settings = workspace.settings
        workspace.pool.set_limits(workspace.budget(), settings.max_models, settings.max_queue)
