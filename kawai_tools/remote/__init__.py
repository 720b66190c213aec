"""Carries out rows of the table on another kawai over HTTP: the daemon of the same home, or ``--server``.

``daemon.py`` finds the daemon, ``peer.py`` is a kawai that is asked and says what it means when it does not
answer as one, ``executing.py`` carries out a row there, ``feed.py`` follows what it tells. None of them knows
a row by name.
"""
