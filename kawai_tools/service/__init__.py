"""``kawai serve`` as a service of its user: of systemd, or of launchd on macOS.

``manager.py`` is what both have in common and tells which there is; ``systemd.py`` and ``launchd.py`` write
the files of theirs and talk to them by their own programs.
"""
