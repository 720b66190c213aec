"""Every path in the store and beside it.

::

    models/<owner>/<repo>/<file>.gguf                as the hub names them
    models/<owner>/<repo>/.kawai/<model>.json        provenance
    models/<owner>/<repo>/.kawai/<model>.lock        held while in use; its mtime is last_used
    models/.partial/<key>/                           resumable downloads
    models/.kawai-store                              marker: this directory is a store
    index.sqlite3   revisions.json   run/   logs/
"""

from pathlib import Path, PurePosixPath

from kawai_tools.refs import shard_of

PULLING, OPENING = ".lock", ".opening"
"""Suffixes of the locks beside partial downloads."""


class Layout:
    """Where things are."""

    def __init__(self, data: Path, state: Path) -> None:
        """``data`` holds the store, ``state`` what a running kawai leaves."""
        self.data = data
        self.state = state

    @property
    def store(self) -> Path:
        """The directory that paths of model files are relative to."""
        return self.data / "models"

    @property
    def marker(self) -> Path:
        """Tells an empty store from a disk that is not mounted."""
        return self.store / ".kawai-store"

    @property
    def index(self) -> Path:
        """The rebuildable index."""
        return self.data / "index.sqlite3"

    @property
    def revisions(self) -> Path:
        """What the hub answered last of revisions; may be lost."""
        return self.data / "revisions.json"

    @property
    def scan_lock(self) -> Path:
        """Held by whoever looks at the whole store, and gives ids to what is new."""
        return self.data / "index.lock"

    @property
    def run(self) -> Path:
        """Sockets and what tells of a running server (0700)."""
        return self.state / "run"

    @property
    def logs(self) -> Path:
        """Where logs go."""
        return self.state / "logs"

    def file(self, path: str) -> Path:
        """A model file by its path relative to the store."""
        return self.store / path

    def provenance(self, model: str) -> Path:
        """The provenance file of a model, named by its path without shard and suffix."""
        return self._beside(model, ".json")

    def lock(self, model: str) -> Path:
        """The lock file of a model; its mtime is when the model was last used, 0 for never."""
        return self.store / lock_path(model)

    def _beside(self, model: str, suffix: str) -> Path:
        path = PurePosixPath(model)
        return self.store / path.parent / ".kawai" / (path.name + suffix)

    def partial(self, model: str) -> Path:
        """The directory of a model's resumable downloads."""
        import hashlib  # noqa: PLC0415 - lists need none

        return self.partials / hashlib.sha256(model.encode()).hexdigest()[:24]

    @property
    def partials(self) -> Path:
        """Where all resumable downloads are."""
        return self.store / ".partial"

    def pull_lock(self, model: str) -> Path:
        """The lock file that one pull of a model holds; gone with its holder."""
        return self.partial(model).with_suffix(PULLING)

    def opening_lock(self, model: str) -> Path:
        """The lock file that those hold who have files of a model still to open; it goes with them."""
        return self.partial(model).with_suffix(OPENING)


def lock_path(model: str) -> str:
    """The lock file of a model, relative to the store."""
    folder, slash, name = model.rpartition("/")
    return f"{folder}{slash}.kawai/{name}.lock"


def model_path(weights: str) -> str:
    """What names a model inside the store: the path of its weights without shard and suffix."""
    return shard_of(weights).stem
