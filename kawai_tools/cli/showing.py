"""What people are shown of models and pulls."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kawai_tools.cli import text
from kawai_tools.cli.output import Output
from kawai_tools.cli.text import Column, safe
from kawai_tools.cli.verdict import short
from kawai_tools.errors import from_info
from kawai_tools.models.model import (
    Capabilities,
    LoadedModel,
    ModelDetails,
    ModelFile,
    ModelList,
    PlannedFile,
    PlanPayload,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kawai_tools.events import Event
    from kawai_tools.operations.pulls import PullRow

_DIGEST = 12
_LONGEST = 200


def models(output: Output, found: ModelList) -> str:
    """The table of ``models list``."""
    columns = (
        Column("ID", shrinks=True),
        Column("SIZE", right=True),
        Column("QUANT"),
        Column("CONTEXT", right=True),
        Column("MODIFIED"),
        Column("USED"),
    )
    size, ago, now = text.size, text.ago, output.now  # 10,000 models are listed in no time
    rows = [
        (
            model.id,
            size(model.size),
            model.quantization or "-",
            str(model.context_length or "-"),
            ago(model.modified, now),
            ago(model.last_used, now) if model.last_used else "-",
        )
        for model in found.data
    ]
    return output.table(columns, rows)


def details(output: Output, model: ModelDetails, *, metadata: bool) -> str:
    """The facts a person wants first, then files, source and settings."""
    parts = [text.facts(_facts(model)), _files(output, model.files), text.facts(_source(output, model))]
    if model.config:
        settings = [
            (safe(name), f"{_value(each.value)} ({each.source})") for name, each in model.config.items()
        ]
        parts.append("Settings\n" + text.facts(settings))
    if metadata:
        parts.append("Metadata\n" + text.facts(_metadata(model)))
    return "\n".join(part for part in parts if part)


def _facts(model: ModelDetails) -> list[tuple[str, str]]:
    template = "yes" if "tokenizer.chat_template" in model.metadata else "no"
    facts = [
        ("Model", model.id),
        ("Architecture", model.architecture or "-"),
        ("Parameters", text.parameters(model.parameters)),
        ("Quantization", model.quantization or "-"),
        ("Context length", str(model.context_length or "-")),
        ("Size", text.size(model.size)),
        ("Chat template", template),
        ("Capabilities", _capabilities(model.capabilities)),
        ("Projection", "yes" if model.has_projection else "no"),
    ]
    return [(name, safe(value)) for name, value in facts]


def _capabilities(can: Capabilities) -> str:
    named = ("images", "audio", "streaming", "reasoning", "tooling", "embedding", "rerank")
    return ", ".join(dict.fromkeys([can.endpoint, *(name for name in named if getattr(can, name))]))


def _files(output: Output, files: list[ModelFile]) -> str:
    columns = (Column("FILE", shrinks=True), Column("SIZE", right=True), Column("SHA256"), Column("ROLE"))
    rows = [(file.path, text.size(file.size), (file.sha256 or "-")[:_DIGEST], file.role) for file in files]
    return output.table(columns, rows)


def _source(output: Output, model: ModelDetails) -> list[tuple[str, str]]:
    source = model.provenance
    facts = [
        ("Source", source.url or "this machine: adopted, or put into the store by hand"),
        ("Commit", source.commit or "-"),
        ("Verified", "never" if source.verified_at is None else text.moment(source.verified_at)),
        ("Installed", text.moment(model.modified)),
        ("Last used", output.ago(model.last_used)),
        ("Protected", "yes: kawai prune leaves it alone" if model.protected else "no"),
        ("Frees", f"{text.size(model.frees)} when it is removed"),
    ]
    return [(name, safe(value)) for name, value in facts]


def _metadata(model: ModelDetails) -> list[tuple[str, str]]:
    entries: Mapping[str, object] = model.metadata
    return [(safe(name), _value(value)) for name, value in entries.items()]


def _value(value: object) -> str:
    length, kind = getattr(value, "length", None), getattr(value, "type", None)
    words = f"[{length} of {kind}]" if length is not None and kind is not None else str(value)
    words = "-" if value is None else words
    words = words.lower() if isinstance(value, bool) else words
    return text.clipped(safe(words), _LONGEST)


def plan(output: Output, planned: PlanPayload) -> str:
    """What a pull would fetch."""
    if planned.exists:
        return f"{safe(planned.id)} is already here; nothing would be fetched\n"
    columns = (Column("FILE", shrinks=True), Column("SIZE", right=True), Column("HERE", right=True))
    facts = [
        ("Model", safe(planned.id)),
        ("Total", text.size(planned.total)),
        ("Needed", text.size(planned.needed)),
        ("Free", text.size(planned.free)),
        ("Memory", short(planned.fit)),
    ]
    return output.table(columns, [_planned(file) for file in planned.files]) + "\n" + text.facts(facts)


def _planned(file: PlannedFile) -> tuple[str, str, str]:
    here = "all" if file.have >= file.size else text.size(file.have) if file.have else "-"
    return (file.path, text.size(file.size), here)


def loaded(output: Output, found: list[LoadedModel]) -> str:
    """The table of ``models ps``; no models, no table."""
    columns = (
        Column("ID", shrinks=True),
        Column("SIZE", right=True),
        Column("MEMORY", right=True),
        Column("ENGINE"),
        Column("STREAMS", right=True),
        Column("EXPIRES"),
    )
    rows = [
        (
            model.id,
            text.size(model.size),
            text.size(model.memory),
            model.engine,
            str(model.active_streams),
            _expires(model),
        )
        for model in found
    ]
    return output.table(columns, rows) if rows else ""


def _expires(model: LoadedModel) -> str:
    """When a model leaves; of one that is not ready what it is."""
    if model.state != "ready":
        return model.state
    if model.expires_at is None:
        return "never"
    left = round((model.expires_at - datetime.now(UTC)).total_seconds())
    return f"in {text.duration(left)}" if left > 0 else "when idle"


def pulls(output: Output, found: "list[PullRow]") -> str:
    """The table of ``pulls list``; no pulls, no table."""
    columns = (
        Column("PULL"),
        Column("TARGET", shrinks=True),
        Column("STATUS"),
        Column("DONE", right=True),
        Column("SIZE", right=True),
        Column("RATE", right=True),
        Column("STARTED"),
    )
    rows = [
        (
            row.pull,
            row.target,
            row.status,
            f"{100 * row.completed // row.total} %" if row.total else "-",
            text.size(row.total),
            text.rate(row.rate) or "-",
            output.ago(row.started_at),
        )
        for row in found
    ]
    return output.table(columns, rows) if rows else ""


def verified(output: Output, event: "Event") -> int:
    """One line for the end of one model's verification; the exit code it asks for."""
    error = getattr(event, "error", None)
    if error is None:
        output.result(f"{getattr(event, 'id', 'the model')} {event.status}")
        return 0
    output.result(f"{getattr(event, 'id', 'the model')} failed")
    if not output.json:
        output.error(error)
    return from_info(error).exit_code
