"""What an export says of itself: the files that follow it in the archive, and what they make up.

An export is one uncompressed tar. ``manifest.json`` comes first, then the files in its order, under the paths
that they have below a home: ``models/...`` as in the store, ``libraries/<platform>/<version>/...``. There is
no time in it, so that the same export is the same bytes, and one that was cut off can be gone on with.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from kawai_tools.errors import UNDECODABLE, BrokenArchive
from kawai_tools.libs.bundle import AssetRecord, Pointer
from kawai_tools.libs.platforms import Arch, Os, Processor

PIPE = "-"
"""What is given for the archive where it is stdin or stdout."""

NAME = "manifest.json"
FORMAT = 1
MOST = 64 << 20
"""Bytes of a manifest; one of ten thousand models has some ten million."""

MODELS, LIBRARIES = "models/", "libraries/"
"""What the paths of files begin with."""

Text = Annotated[str, Meta(max_length=8192)]
Size = Annotated[int, Meta(ge=0, le=1 << 50)]
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class CarriedFile(msgspec.Struct, frozen=True):
    """One file of the archive, in whose order they are listed."""

    path: Text
    size: Size
    sha256: Digest


class CarriedPart(msgspec.Struct, frozen=True):
    """One file of a model, by its path in the store, and where it came from."""

    path: Text
    role: Literal["weights", "projection"]
    url: Text | None = None
    etag: Text | None = None


class CarriedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model: what its provenance says; ``verified`` where digests had been promised and were right."""

    id: Text
    files: list[CarriedPart]
    url: Text | None = None
    commit: Text | None = None
    sources: list[Text] = []
    verified: bool = False


class CarriedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build: its files are those below its folder; ``links`` are targets by name, as it has them."""

    version: Annotated[str, Meta(pattern=r"\Ab[0-9]{1,9}\Z")]
    arch: Arch
    os: Os
    processor: Processor
    variant: Text | None = None
    assets: Annotated[list[AssetRecord], Meta(max_length=100)] = []
    executables: list[Text] = []
    links: dict[Text, Text] = {}

    @property
    def platform(self) -> str:
        """The folder of builds of this kind."""
        return f"{self.os}-{self.arch}-{self.processor}"

    @property
    def folder(self) -> str:
        """What the paths of its files begin with."""
        return f"{LIBRARIES}{self.platform}/{self.version}/"

    @property
    def pointer(self) -> Pointer:
        """What names it."""
        return Pointer(self.platform, self.version)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; ``version`` is that of the kawai that wrote it, ``active`` the build that it used."""

    format: int = FORMAT
    version: str
    files: list[CarriedFile]
    models: list[CarriedModel]
    builds: list[CarriedBuild]
    active: Pointer | None = None

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class _Head(msgspec.Struct, frozen=True):
    format: int
    version: str


# made as the module is: msgspec is not safe where threads are first to use a type
_HEAD, _MANIFEST = msgspec.json.Decoder(_Head), msgspec.json.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """The manifest as it stands in the archive."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes) -> Manifest:
    """Read a manifest; what it says is not checked yet. Raises ``BrokenArchive``."""
    try:
        head = _HEAD.decode(data)
        if head.format > FORMAT:
            raise BrokenArchive(
                f"it was made by a newer kawai ({head.version[:40]}, format {head.format}; "
                f"this one knows {FORMAT})",
                "upgrade kawai here, or export it with an older one",
            )
        manifest = _MANIFEST.decode(data)
    except UNDECODABLE as error:
        raise BrokenArchive(f"its {NAME} cannot be read: {error}", "export it again") from error
    if manifest.format != FORMAT:
        raise BrokenArchive(f"its format {manifest.format} is none", "export it again")
    return manifest
