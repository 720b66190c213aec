"""What a manifest may say. It comes from elsewhere: nothing in it is believed before it was looked at."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable

from kawai_tools.carry.manifest import MODELS, CarriedBuild, CarriedFile, CarriedModel, Manifest
from kawai_tools.errors import BrokenArchive, InvalidId, UnsafeArchive
from kawai_tools.libs.inflating import LIMITS, quoted
from kawai_tools.libs.members import Kind, Member, Tree, parts
from kawai_tools.models.layout import model_path
from kawai_tools.refs import RESERVED, is_gguf_name, parse_model, safe_path, shard_of

_MOST_SOURCES = 1000
_BELOW = 3
_LONGEST, _DEEPEST = 1200, 32
"""Characters and folders of a path, more than any that is taken: what is looked at must take no time."""


def check(manifest: Manifest) -> dict[str, Tree]:
    """Make sure that a manifest speaks of whole models and builds, and of nothing outside of them.

    Gives what each build holds, by its folder. Raises ``UnsafeArchive`` or ``BrokenArchive``.
    """
    files = {file.path: file for file in manifest.files}
    _check_paths(manifest.files)
    roles: dict[str, str] = {}
    for model in manifest.models:
        _check_model(model, files, roles)
    _check_unique("the model", [model_path(each.files[0].path) for each in manifest.models])
    _check_unique("the build", [each.folder for each in manifest.builds])
    within = _by_folder(manifest.files)
    trees = {build.folder: _tree(build, within.get(build.folder, [])) for build in manifest.builds}
    known = set(roles).union(*(_paths(folder, tree) for folder, tree in trees.items()))
    for path in files:
        if path not in known:
            raise _broken(f"{quoted(path)} belongs to no model and no build")
    return trees


def _check_paths(files: list[CarriedFile]) -> None:
    """Refuse two files of one name, and one that lies below another."""
    for file in files:
        if len(file.path) > _LONGEST or file.path.count("/") > _DEEPEST:
            raise UnsafeArchive(f"{quoted(file.path)} is no path of a model or build", _NOT)
    _check_unique("the file", [file.path for file in files])
    names = {_folded(file.path) for file in files}
    for name in names:
        above, slash, _ = name.rpartition("/")
        while slash:
            if above in names:
                raise UnsafeArchive(f"{quoted(name)} lies below {quoted(above)}, which is a file", _NOT)
            above, slash, _ = above.rpartition("/")


def _check_unique(what: str, names: Iterable[str]) -> None:
    """Refuse what is there twice, also by the spellings that some file system takes for the same."""
    seen: set[str] = set()
    for name in names:
        if _folded(name) in seen:
            raise UnsafeArchive(f"{what} {quoted(name)} is there twice", _NOT)
        seen.add(_folded(name))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _check_model(model: CarriedModel, files: dict[str, CarriedFile], roles: dict[str, str]) -> None:
    if not _is_id(model.id):
        raise UnsafeArchive(f"{quoted(model.id)} is no id of a model", _NOT)
    for part in model.files:
        if not (safe_path(part.path) and is_gguf_name(part.path)):
            raise UnsafeArchive(f"{quoted(part.path)} is no path of a model's file", _NOT)
        path = MODELS + part.path
        if path not in files:
            raise _broken(f"{quoted(path)} of {quoted(model.id)} is not among its files")
        if roles.setdefault(path, part.role) != part.role:
            raise _broken(f"{quoted(path)} is said to be weights and a projection")
    weights = [part.path for part in model.files if part.role == "weights"]
    ordered = [*weights, *(part.path for part in model.files if part.role == "projection")]
    if not weights or weights != _set_of(weights[0]) or ordered != [part.path for part in model.files]:
        raise _broken(f"{quoted(model.id)} is no complete set of shards")
    if len(ordered) > len(weights) + 1 or len(model.sources) > _MOST_SOURCES:
        raise _broken(f"{quoted(model.id)} has more than one projection, or too many sources")


def _set_of(path: str) -> list[str]:
    folder, slash, name = path.rpartition("/")
    return [f"{folder}{slash}{each}" for each in shard_of(name).names()]


def _is_id(words: str) -> bool:
    try:
        ref = parse_model(words)
    except InvalidId:
        return False
    return not {words.casefold(), (ref.owner or "").casefold()} & RESERVED


def _tree(build: CarriedBuild, files: list[tuple[str, int]]) -> Tree:
    """What a build holds, by the rules for archives of builds. Raises ``UnsafeArchive``."""
    tree, executables = Tree(LIMITS), set(build.executables)
    for name, size in files:
        path = parts(name, LIMITS)
        if "/".join(path) != name:
            raise UnsafeArchive(f"{quoted(name)} is no plain path", _NOT)
        tree.add(Member(name, path, Kind.FILE, size, executable=name in executables))
    if not tree.listed:
        raise _broken(f"there is no file of the build {build.version}")
    for name, target in build.links.items():
        tree.add(Member(name, parts(name, LIMITS), Kind.SYMLINK, target=target))
    tree.check_links()
    if tree.size > LIMITS.total:
        raise UnsafeArchive(f"{build.version} has more than {LIMITS.total:,} bytes", _NOT)
    return tree


def _by_folder(files: list[CarriedFile]) -> dict[str, list[tuple[str, int]]]:
    """Names and sizes of what lies three folders deep, as files of builds do, by those folders."""
    found: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for file in files:
        top, *below = file.path.split("/", 3)
        if len(below) == _BELOW:
            found["/".join([top, *below[:-1], ""])].append((below[-1], file.size))
    return found


def _paths(folder: str, tree: Tree) -> set[str]:
    return {folder + member.name for member in tree.listed if member.kind is Kind.FILE}


_NOT = "do not use this export"


def _broken(what: str) -> BrokenArchive:
    return BrokenArchive(what, "export it again")
