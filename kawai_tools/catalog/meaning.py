"""What somebody means by the name of a model: one that is installed, else one of a catalog, else a source."""

from kawai_tools.catalog.catalog import Catalog
from kawai_tools.catalog.entries import Entry
from kawai_tools.errors import InvalidRequest, KawaiError, ModelNotFound
from kawai_tools.models.planning import installed_by
from kawai_tools.models.records import Record
from kawai_tools.models.store import Store
from kawai_tools.refs import Source, parse_model, parse_source

_FORMS = "or give what may be pulled: OWNER/REPO:QUANT, or the address of a GGUF file"


def meant(
    words: str, store: Store, catalog: Catalog, endpoint: str, *, local_paths: bool = False
) -> Record | Entry | Source:
    """What these words mean; what would be pulled by them and is here already is what is installed.

    ``local_paths``: a path on this machine is answered with what to do instead (never over HTTP).
    Raises ``ModelNotFound`` or ``InvalidRequest`` for what is none of these, and ``Ambiguous``.
    """
    try:
        return store.find(parse_model(words)).record
    except (ModelNotFound, InvalidRequest) as error:
        missing = error
    entry = catalog.get(words)
    if entry is None and not names_source(words, endpoint):
        if "/" in words or ":" in words:  # it was to be a source
            parse_source(words, endpoint, local_paths=local_paths)
        missing.hint = f"{missing.hint}, {_FORMS}" if missing.hint else _FORMS
        raise missing
    source = parse_source(entry.source if entry else words, endpoint)
    here = installed_by(store, source)
    return here.record if here else entry or source


def names_source(words: str, endpoint: str) -> bool:
    """Whether words could be where a model is pulled from."""
    try:
        parse_source(words, endpoint)
    except KawaiError:
        return False
    return True
