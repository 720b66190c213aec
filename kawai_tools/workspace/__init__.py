"""The composition root: ``root.py`` makes the nouns, ``outside.py`` the ways out."""

from kawai_tools.workspace.outside import WAYS_OUT
from kawai_tools.workspace.root import Workspace

__all__ = ["WAYS_OUT", "Workspace"]
