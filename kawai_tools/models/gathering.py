"""Which models are meant by the paths that somebody names, and what they will be called.

All is looked at before anything is changed: whatever can be refused is refused here.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from kawai_tools.errors import Conflict, InvalidId, InvalidRequest, NotAModel, NotFound, UsageError
from kawai_tools.models.adoption import Adoption, Piece
from kawai_tools.models.caches import identity
from kawai_tools.models.candidates import Candidate, files_below, look, looking, shown, whole_set
from kawai_tools.models.naming import MAX_STEM
from kawai_tools.models.neighbours import Neighbours
from kawai_tools.models.records import LOCAL, Entry
from kawai_tools.models.store import Store
from kawai_tools.models.taking import Mode
from kawai_tools.refs import RESERVED, is_gguf_name, parse_model, shard_of

_MAX_NAME = 180
"""Bytes of a name; what names of files have before and behind it must fit in, too."""


class _Model(NamedTuple):
    """The files of one model: shards in order, and the projection that goes with them."""

    weights: list[Candidate]
    projection: Candidate | None = None


class Gatherer:
    """Says what paths mean."""

    def __init__(self, store: Store, neighbours: Neighbours) -> None:
        """Nothing is looked at yet."""
        self._store = store
        self._neighbours = neighbours

    def gather(self, paths: Sequence[str], mode: Mode, wanted: str | None) -> list[Adoption]:
        """What is to be adopted, each model once, in the order in which it was named.

        ``wanted`` is the id that the one model gets. Raises ``InvalidId``, ``UsageError`` for an id where
        there are several models, ``Conflict`` or ``DifferentVersion`` where something is in the way,
        ``NotAModel`` for projections alone, and as :func:`~kawai_tools.models.candidates.look` and
        ``whole_set``.
        """
        if wanted is not None:
            _check_id(wanted)
        self._store.recover()
        models = self._models(paths)
        if wanted is not None and len(models) > 1:
            raise UsageError(
                f"--id names one model, and {len(models)} are to be adopted", "adopt them one by one"
            )
        installed = self._store.index.all()
        return [self._adoption(model, mode, wanted, installed) for model in models]

    def _adoption(self, model: _Model, mode: Mode, wanted: str | None, installed: list[Entry]) -> Adoption:
        name = parse_model(wanted).name if wanted else self._name(model.weights[0])
        pieces = _pieces(model, name)
        plan = Adoption(pieces, mode, wanted)
        twin = next((each for each in installed if plan.shares_files(self._store.layout, each)), None)
        if twin is None:
            self._refuse_own(plan)
            plan.refuse_taken(self._store, {})
        return Adoption(pieces, mode, wanted, twin)

    def _refuse_own(self, plan: Adoption) -> None:
        store = Path(os.path.realpath(self._store.layout.store))
        for piece in plan.pieces:
            if store in piece.file.real.parents:
                raise Conflict(
                    f"{shown(piece.file.path)} lies in kawai's store already",
                    "kawai models index lists what was put there by hand",
                )

    # what the paths mean

    def _models(self, paths: Sequence[str]) -> list[_Model]:
        models: dict[tuple[tuple[int, int], ...], _Model] = {}
        beside: dict[tuple[int, int], Candidate] = {}
        for words in paths:
            for found in self._found(Path(words).absolute()):
                if isinstance(found, Candidate):
                    beside[found.identity] = found
                    continue
                key = tuple(file.identity for file in found.weights)
                known = models.get(key, found)
                models[key] = found if known.projection is None else known
        return _paired(list(models.values()), list(beside.values()))

    def _found(self, path: Path) -> Iterator[_Model | Candidate]:
        """The models at a path; a projection where that is named."""
        with looking(path):
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        if is_folder:
            yield from self._in_folder(path)
            return
        file = look(self._best_name(path))
        yield file if file.is_projection else _Model(whole_set(file))

    def _best_name(self, path: Path) -> Path:
        """A name that says which shard it is, where a tool knows one of a blob that is named."""
        if is_gguf_name(path.name):
            return path
        held = self._neighbours.known(Path(os.path.realpath(path)))
        return held.path if held and is_gguf_name(held.path.name) else path

    def _in_folder(self, top: Path) -> Iterator[_Model]:
        sets: dict[tuple[Path, str, int], list[Candidate]] = {}
        projections: dict[tuple[int, int], Candidate] = {}
        for path in files_below(top, self._own()):
            file, shard = look(path), shard_of(path.name)
            key = (path.parent, shard.stem, shard.count)
            if file.is_projection:
                projections.setdefault(file.identity, file)
            elif key not in sets:
                sets[key] = whole_set(file)
        if not sets and projections:
            raise _no_model(next(iter(projections.values())))
        if not sets:
            raise NotFound(
                f"there is no GGUF file in {shown(top)}", "kawai models scan lists what other tools hold"
            )
        for weights in sets.values():
            yield _Model(weights, self._beside(weights[0], list(projections.values())))

    def _own(self) -> tuple[int, int] | None:
        try:
            return identity(self._store.layout.store.stat())
        except OSError:
            return None

    def _beside(self, first: Candidate, projections: list[Candidate]) -> Candidate | None:
        """The only projection in a model's directory, or the one that its tool says goes with it."""
        if is_gguf_name(first.path.name):
            found = [each for each in projections if each.path.parent == first.path.parent]
        else:
            held = self._neighbours.known(first.real)
            found = [each for each in projections if held and each.digest == (held.goes_with or "")]
        return found[0] if len(found) == 1 else None

    def _name(self, first: Candidate) -> str:
        """What a model will be called: as its file, as its tool calls it, or as it calls itself."""
        if is_gguf_name(first.path.name):
            return folder_name(shard_of(first.path.name).stem)
        held = self._neighbours.known(first.real)
        return folder_name((held.name if held else first.header.name or first.real.name).replace(":", "-"))


def _paired(models: list[_Model], projections: list[Candidate]) -> list[_Model]:
    """Give the projection that was named to the one model."""
    if not projections:
        return models
    if not models:
        raise _no_model(projections[0])
    if len(models) > 1 or len(projections) > 1:
        raise InvalidRequest(
            f"{len(projections)} projection(s) and {len(models)} models are named: it cannot be told "
            "which go together",
            "adopt each model with its projection by itself",
        )
    return [_Model(models[0].weights, projections[0])]


def _no_model(file: Candidate) -> NotAModel:
    return NotAModel(
        f"{shown(file.path)} is a projection, not a model", "name the model that it goes with, too"
    )


def _pieces(model: _Model, name: str) -> tuple[Piece, ...]:
    """Where the files of a model go."""
    folder, count = f"{LOCAL}/{name}", len(model.weights)
    names = [f"{name}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    names = names if count > 1 else [f"{name}.gguf"]
    weights = [
        Piece(file, f"{folder}/{each}", "weights") for file, each in zip(model.weights, names, strict=True)
    ]
    projection = model.projection
    beside = [Piece(projection, f"{folder}/mmproj-{name}.gguf", "projection")] if projection else []
    return (*weights, *beside)


def folder_name(words: str) -> str:
    """Words as they may name a folder, a file and a model."""
    clean = "".join(char if char.isprintable() and char not in "/\\%" else "-" for char in words)
    clean = clean.strip().lstrip("-.")[:MAX_STEM].encode()[:_MAX_NAME].decode(errors="ignore").rstrip()
    while (shard := shard_of(f"{clean}.gguf")).count:  # it would be taken for one of several
        clean = shard.stem
    return clean or "model"


def _check_id(wanted: str) -> None:
    """Refuse an id that no adopted model can have. Raises ``InvalidId``."""
    ref = parse_model(wanted)
    if ref.owner not in {None, LOCAL}:
        raise InvalidId(
            f"an adopted model has no owner, so its id cannot be {wanted}", f"--id {folder_name(ref.name)}"
        )
    if ref.name.casefold() in RESERVED and ref.owner is None:
        raise InvalidId(f"{wanted!r} is a word of kawai's own and no id", f"--id {LOCAL}/{ref.name}")
    if folder_name(ref.name) != ref.name:
        raise InvalidId(
            f"{wanted!r} cannot be an id, since it must name files too", f"--id {folder_name(ref.name)}"
        )
