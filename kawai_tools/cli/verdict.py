"""Whether a model will run here, as people are told: the verdict first, then the numbers."""

from typing import TYPE_CHECKING

from kawai_tools.cli import text

if TYPE_CHECKING:
    from kawai_tools.fit import Fit


def verdict(found: "Fit") -> str:
    """The verdict in a few words."""
    layers = "some" if found.layers is None else f"{found.layers} of {found.layers_total}"
    words = {
        "fits": "fits",
        "fits_context": f"fits with {found.context} context",
        "fits_layers": f"fits with {layers} layers on the GPU",
        "no": "does not fit",
    }[found.verdict]
    return f"a guess: {words}" if found.guess else words


def short(found: "Fit | None") -> str:
    """The verdict in one line, with both numbers."""
    if found is None:
        return "not known"
    return f"{verdict(found)} (needs {text.size(found.needed)} of {text.size(found.available)})"


def told(found: "Fit") -> str:
    """The verdict, the numbers that it comes from, and what may be done."""
    facts = [
        ("Weights", text.size(found.weights)),
        ("Context memory", f"{text.size(found.kv)}{_tokens(found)}"),
        ("Compute", text.size(found.compute)),
        *((("Projection", text.size(found.projection)),) if found.projection else ()),
        ("Needed", text.size(found.needed)),
        ("Available", text.size(found.available)),
    ]
    parts = [f"{verdict(found)}\n", text.facts(facts), _advice(found)]
    return "\n".join(part for part in parts if part)


def _tokens(found: "Fit") -> str:
    """How many tokens that is, of how many requests at a time."""
    if found.context is None:
        return ""
    return f" ({found.context} tokens{f', {found.parallel} times' if found.parallel > 1 else ''})"


def _advice(found: "Fit") -> str:
    """What to do about it, or how sure it is."""
    if found.context is None:
        return "the header of its file cannot be read where it is: only the size is known\n"
    if found.guess:
        return "its architecture is not known: its layers are counted as those of most models\n"
    return f"{found.advice}\n" if found.advice else ""
