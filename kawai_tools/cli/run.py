"""``kawai run``: one command from nothing to an answer."""

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from signal import ITIMER_REAL, SIGALRM, setitimer, signal
from typing import TYPE_CHECKING, Annotated, Protocol, cast

import msgspec
import typer

from kawai_tools.cli import talking, text, verdict
from kawai_tools.cli.completion import runnable_ids
from kawai_tools.cli.groups import LAZY, KawaiCommand
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.cli.output import Output, is_terminal
from kawai_tools.cli.running import run as run_row
from kawai_tools.errors import InvalidRequest, KawaiError, ModelNotFound, NoEngine, UsageError
from kawai_tools.values import ENGINES

if TYPE_CHECKING:
    from kawai_tools.catalog.entries import CatalogRow
    from kawai_tools.events import Event
    from kawai_tools.libs.bundle import LibsPlanPayload
    from kawai_tools.models.model import ModelDetails, PlanPayload
    from kawai_tools.transfer.pulls import Feed

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

_LEAVE = frozenset({"/bye", "/exit", "/quit"})
_PROMPT = "> "
_GLANCE = 0.5


@app.command(cls=KawaiCommand, help=LAZY["run"])
def run(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="An installed model, else one of the catalog, else a source.",
            autocompletion=runnable_ids,
        ),
    ],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Without it: a conversation.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Fetch what is missing without asking.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{', '.join(ENGINES)}; runs it here, also beside kawai serve."),
    ] = None,
) -> None:
    """Answer once, or talk until Ctrl-D."""
    this = invocation(context)
    this.flag("engine", engine)
    if prompt is not None:
        prompt = _checked(prompt)
    elif not is_terminal(sys.stdin):
        prompt = _piped()
    if this.is_remote and engine is not None:
        raise UsageError("--engine runs the model here, and --server names another kawai", "leave one out")
    this.keep_log()
    details = _installed(this, model, yes=yes)
    chats = _chats(details)
    if engine is not None or not this.serves():
        _ensure_engine(this, yes=yes)
    with talking.answering(this, details.id, alone=engine is not None) as place:
        talk = Talk(this.output, place, details.id, chats=chats)
        talk.load()
        if prompt is None:
            talk.hold()
        else:
            talk.answer(prompt)


# what is missing is fetched


def _installed(this: Invocation, words: str, *, yes: bool) -> "ModelDetails":
    """The model that is meant; pulled first, if need be."""
    from kawai_tools.cli.following import follow_pull  # noqa: PLC0415

    try:
        return _details(this, words)
    except (ModelNotFound, InvalidRequest) as error:
        pull = _pull_of(this, words, error)
        missing = error if isinstance(error, ModelNotFound) else ModelNotFound(f"{words} is not installed")
    if isinstance(pull, str):
        return _details(this, pull)
    if not yes:
        _check_asking(missing)
        plan = cast("PlanPayload", pull(dry_run=True))
        if plan.exists:
            return _details(this, plan.id)
        if plan.fit is not None:
            this.output.say(f"{plan.id}: {verdict.short(plan.fit)}")
        _consent(this, f"{plan.id} is not installed ({text.size(plan.total)}). Pull it?")
    last = follow_pull(this, cast("Feed[Event]", pull(dry_run=False)))
    return _details(this, str(getattr(last, "id", words)))


def _details(this: Invocation, words: str) -> "ModelDetails":
    from kawai_tools.operations.models import MODELS_SHOW, ModelRequest  # noqa: PLC0415 - help needs none

    return cast("ModelDetails", run_row(this, MODELS_SHOW, ModelRequest(words)))


def _pull_of(this: Invocation, words: str, missing: KawaiError) -> "Pulling | str":
    """How a model that is not installed by this name is pulled; or the id by which it is here already.

    Raises ``missing`` where it is neither of a catalog nor a source.
    """
    from kawai_tools.catalog.entries import Entry  # noqa: PLC0415
    from kawai_tools.catalog.meaning import meant  # noqa: PLC0415
    from kawai_tools.models.records import Record  # noqa: PLC0415
    from kawai_tools.operations.catalog import CATALOG_PULL, CatalogPullRequest  # noqa: PLC0415
    from kawai_tools.operations.models import MODELS_PULL, PullRequest  # noqa: PLC0415

    if this.is_remote:
        entry = _listed_there(this, words, missing)
    else:
        here = this.workspace
        found = meant(words, here.models, here.catalog, this.settings.hub_endpoint, local_paths=True)
        if isinstance(found, Record):
            return found.id
        entry = found.row.id if isinstance(found, Entry) else None
    if entry is None:
        return lambda *, dry_run: run_row(this, MODELS_PULL, PullRequest(words, dry_run=dry_run))
    return lambda *, dry_run: run_row(this, CATALOG_PULL, CatalogPullRequest(entry, dry_run=dry_run))


def _listed_there(this: Invocation, words: str, missing: KawaiError) -> str | None:
    """The id of an entry of another kawai's catalog, or ``None`` for a source; its plan tells the rest."""
    from kawai_tools.catalog.meaning import names_source  # noqa: PLC0415
    from kawai_tools.operations.catalog import CATALOG_LIST, CatalogRequest  # noqa: PLC0415

    rows = cast("list[CatalogRow]", run_row(this, CATALOG_LIST, CatalogRequest(search=words)))
    found = next((row.id for row in rows if row.id.casefold() == words.casefold()), None)
    if found is None and not names_source(words, this.settings.hub_endpoint):
        raise missing
    return found


class Pulling(Protocol):
    """Pulls a model, or says what that would fetch."""

    def __call__(self, *, dry_run: bool) -> object:
        """A plan, or a feed."""


def _ensure_engine(this: Invocation, *, yes: bool) -> None:
    """Something that runs models; a build is installed first, if there is none."""
    from kawai_tools.runners.engines import choose, engines  # noqa: PLC0415

    known = engines(this.workspace.bundles)
    try:
        choose(known, this.settings.engine)
    except NoEngine as error:
        if this.settings.engine not in {"auto", "llama-server"}:
            raise
        from kawai_tools.cli.following import follow_pull  # noqa: PLC0415
        from kawai_tools.operations.libs import LIBS_PULL, LibsPullRequest  # noqa: PLC0415

        if not yes:
            _check_asking(error)
            plan = cast("LibsPlanPayload", run_row(this, LIBS_PULL, LibsPullRequest(dry_run=True)))
            _consent(this, f"No llama.cpp is installed. Pull {plan.id} ({text.size(plan.total)})?")
        follow_pull(this, cast("Feed[Event]", run_row(this, LIBS_PULL, LibsPullRequest())))


def _check_asking(missing: KawaiError) -> None:
    """Raise what is missing where nobody can be asked whether to fetch it."""
    if not is_terminal(sys.stdin) or not is_terminal(sys.stderr):
        hint = f"add --yes to fetch it; {missing.hint}" if missing.hint else "add --yes to fetch it"
        raise type(missing)(missing.message, hint)


def _consent(this: Invocation, question: str) -> None:
    """Go on if the user says so."""
    this.output.say(f"{question} [y/N]")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        this.output.note("nothing was pulled")
        raise typer.Exit(1)


# a conversation


def _checked(words: str) -> str:
    """What is asked. Raises ``UsageError`` for nothing, and for what is no text."""
    if not words.strip():
        raise UsageError("the prompt is empty", "say something, or leave it out on a terminal to talk")
    try:
        words.encode()
    except UnicodeEncodeError:
        raise _no_text() from None
    return words


def _piped() -> str:
    """The prompt that is all of stdin, without the newline at its end. Raises ``UsageError``."""
    if sys.stdin is None:  # started with a closed descriptor
        return _checked("")
    try:
        return _checked(sys.stdin.buffer.read().decode().removesuffix("\n"))
    except UnicodeDecodeError:
        raise _no_text() from None


def _no_text() -> UsageError:
    return UsageError("the prompt is not UTF-8", "iconv converts text")


def _chats(details: "ModelDetails") -> bool:
    """Whether a model takes a conversation; else it goes on with a text.

    Raises ``UsageError`` for one that does neither.
    """
    endpoint = details.capabilities.endpoint
    if endpoint not in {"chat", "completion"}:
        what = {"embeddings": "makes embeddings", "rerank": "ranks documents"}.get(
            endpoint, "answers nothing"
        )
        raise UsageError(
            f"{details.id} {what}, and cannot be talked to",
            f"kawai serve answers POST /v1/{endpoint} with it",
        )
    return endpoint == "chat"


class Talk:
    """A conversation with one model."""

    def __init__(
        self, output: Output, place: talking.Elsewhere | talking.Here, model_id: str, *, chats: bool
    ) -> None:
        """Nothing is loaded or said yet."""
        self._output, self._place, self._id, self._chats = output, place, model_id, chats
        self._messages: list[dict[str, str]] = []

    def load(self) -> None:
        """Have the model loaded, and tell how long that took."""
        if self._place.is_loaded():
            if self._output.verbose:
                self._output.say(f"{self._id} was loaded already")
            return
        self._output.waiting(f"loading {self._id} ...")
        begin = time.monotonic()
        self._place.load()
        if self._output.verbose:
            self._output.say(f"loaded in {time.monotonic() - begin:.2f} s")

    def answer(self, prompt: str) -> None:
        """Show the answer to a prompt; both are remembered if it comes to its end."""
        asked = {"role": "user", "content": prompt}
        messages = [*self._messages, asked]
        path = "/v1/chat/completions" if self._chats else "/v1/completions"
        said = {"messages": messages} if self._chats else {"prompt": prompt}
        body = msgspec.json.encode({"model": self._id, "stream": True, **said})
        shown = talking.Shown(self._output)
        try:
            with closing(self._place.ask(path, body)) as pieces:
                for data, event in talking.events(pieces):
                    shown.take(data, event)
            shown.end()
        finally:
            shown.break_off()
        self._messages = [*messages, {"role": "assistant", "content": shown.words}]

    def hold(self) -> None:
        """Answer what is typed until Ctrl-D or a word that ends it; an answer that fails does not."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - input() edits lines with it
        self._output.note("/bye or Ctrl-D ends the conversation")
        while True:
            try:
                words = self._typed()
            except EOFError:
                return
            if words in _LEAVE:
                return
            try:
                self._reply(words)
            except KawaiError as error:
                self._output.error(error.info)

    def _reply(self, words: str) -> None:
        """Answer one line; Ctrl-C ends the answer and not the conversation."""
        if words.startswith("/"):
            self._output.note(f"{' or '.join(sorted(_LEAVE))} ends the conversation; all else is said to it")
        elif words:
            try:
                self.answer(_checked(words))
            except KeyboardInterrupt:
                self._output.note("(stopped; Ctrl-C again or /bye ends the conversation)")

    def _typed(self) -> str:
        """One line; the prompt goes to stderr where stdout is for results only."""
        is_shown = is_terminal(sys.stdout) and not self._output.json
        with contextlib.redirect_stdout(sys.stdout if is_shown else sys.stderr), _signals_heeded():
            try:
                return input(_PROMPT).strip()
            except UnicodeDecodeError:
                raise _no_text() from None
            except (EOFError, KeyboardInterrupt):
                self._output.say("")  # the shell's prompt comes next
                raise


@contextmanager
def _signals_heeded() -> Iterator[None]:
    """Have ``input`` look for signals now and then.

    It does so only where one interrupts its waiting: of one that comes a moment earlier it would not know.
    """
    before = signal(SIGALRM, lambda *_: None)
    setitimer(ITIMER_REAL, _GLANCE, _GLANCE)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0)
        signal(SIGALRM, before)
