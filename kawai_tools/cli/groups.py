"""Commands and groups as kawai wants them: imported when called, with the global options at every level.

Typer has its own copy of Click since 0.26; only ``typer.core`` and ``typer.main`` are used of it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from kawai_tools import __version__
from kawai_tools.cli.invocation import Invocation, invocation
from kawai_tools.errors import UsageError

if TYPE_CHECKING:
    from typer._click import Command, Context, HelpFormatter, Parameter
    from typer._click.shell_completion import CompletionItem

LAZY = {
    "models": "Pull, list, show, verify and remove models.",
    "catalog": "Choose a model from a list, and pull it.",
    "libs": "Install, try, switch and roll back llama.cpp builds.",
    "outdated": "Tell what has a newer version: models, llama.cpp, catalogs.",
    "pulls": "Watch or cancel the pulls of a running kawai serve.",
    "tokens": "Make and revoke the tokens of a server that asks for them.",
    "fit": "Say whether a model will run here, before it is pulled.",
    "run": "Ask a model, fetching it and an engine if need be.",
    "serve": "Serve the HTTP API on this machine.",
    "ui": "Open the admin page of a running kawai serve.",
    "logs": "Show what kawai serve says, or the engine of a model.",
    "service": "Have kawai serve run by itself, from login on.",
    "doctor": "Say what works, what does not, and what to do.",
    "export": "Write models and builds into one file, for a machine without network.",
    "import": "Install the models and builds that kawai export has written.",
    "df": "Show what kawai takes of the disk, and what is free.",
    "prune": "Give disk space back: broken-off downloads, old builds, unused models.",
    "config": "Show the settings and where they come from.",
}
"""The commands of the top level, each a module beside this one, with what the help says of it."""

_ELSEWHERE = {
    "outdated": ("updates", "app"),
    "export": ("carry", "export_app"),
    "import": ("carry", "import_app"),
    "df": ("storage", "df_app"),
    "prune": ("storage", "prune_app"),
}
"""Commands whose application is in another module, or called otherwise."""


def _global_option(name: str, help_text: str, metavar: str | None = None) -> TyperOption:
    def collect(context: typer.Context, _: object, value: str | bool | None) -> None:
        if value not in {None, False} and isinstance(context.find_root().obj, Invocation):
            _take(invocation(context), name, value)

    return TyperOption(
        param_decls=[f"--{name}"],
        help=help_text,
        metavar=metavar,
        is_flag=metavar is None,
        default=False if metavar is None else None,
        callback=collect,
        expose_value=False,
    )


def _take(run: Invocation, name: str, value: str | bool | None) -> None:
    if isinstance(value, str):
        run.flag(name.replace("-", "_"), value)
    elif name == "offline":
        run.flags["offline"] = True
    else:
        setattr(run.output, name, True)


GLOBAL_OPTIONS = (
    _global_option("server", "Carry it out on the kawai that serves there.", "URL"),
    _global_option("token-file", "The file with the token for that kawai.", "FILE"),
    _global_option("home", "Keep and find everything of kawai under this directory.", "DIR"),
    _global_option("json", "Print what the HTTP API would answer, as JSON."),
    _global_option("quiet", "Print results and errors only."),
    _global_option("verbose", "Print more; with a failure of kawai itself, its traceback."),
    _global_option("offline", "Open no connection to anywhere else."),
)


def _show_version(context: typer.Context, _: object, value: bool) -> None:
    if value and not context.resilient_parsing:
        typer.echo(f"kawai {__version__}")
        context.exit()


VERSION_OPTION = TyperOption(
    param_decls=["--version"],
    help="Print the version and leave.",
    is_flag=True,
    default=False,
    is_eager=True,
    callback=_show_version,
    expose_value=False,
)


def _write_options(
    command: TyperCommand | TyperGroup, context: "Context", formatter: "HelpFormatter"
) -> None:
    parts: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Global options": []}
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is not None:
            parts[_section(param)].append(record)
    for title, records in parts.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _section(param: "Parameter") -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    return "Global options" if param in GLOBAL_OPTIONS else "Options"


class KawaiCommand(TyperCommand):
    """A command that takes the global options, and whose usage line is in plain words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class
        """Append the global options."""
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *GLOBAL_OPTIONS]

    def collect_usage_pieces(self, ctx: "Context") -> list[str]:
        """``MODEL`` where Typer writes ``{MODEL}``."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Arguments, own options, global options."""
        _write_options(self, ctx, formatter)


class LocalCommand(KawaiCommand):
    """A command that nobody can carry out on another machine."""

    def invoke(self, ctx: "Context") -> object:
        """Refuse where another kawai is named."""
        from kawai_tools.cli.running import require_here  # noqa: PLC0415 - help needs none

        this = ctx.find_root().obj
        if isinstance(this, Invocation):
            require_here(this, ctx.command_path.removeprefix("kawai "))
        return super().invoke(ctx)


class KawaiGroup(TyperGroup):
    """A group that takes the global options and helps with a mistyped command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class
        """Append the global options."""
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *GLOBAL_OPTIONS]

    def format_options(self, ctx: "Context", formatter: "HelpFormatter") -> None:
        """Commands first: they are what a group is about."""
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)

    def shell_complete(self, ctx: "Context", incomplete: str) -> "list[CompletionItem]":
        """What may follow; nothing after a word that is no command."""
        unknown = ctx.args or ctx._protected_args  # noqa: SLF001 - where Click keeps what it found no command for
        return [] if unknown else super().shell_complete(ctx, incomplete)

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> "tuple[str | None, Command | None, list[str]]":
        """The command, or ``UsageError`` naming those that come near."""
        name = args[0]
        if name.startswith("-") or self.get_command(ctx, name) is not None or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches  # noqa: PLC0415 - only for a typo

        near = get_close_matches(name, self.list_commands(ctx), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"{ctx.command_path} --help lists them"
        raise UsageError(f"there is no command {name!r} in {ctx.command_path}", hint)


class LazyGroup(KawaiGroup):
    """The top level: a command's module is imported when the command is called, not to list it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the base class
        """Put stubs in the place of the commands."""
        super().__init__(*args, **kwargs)
        self.commands = {name: TyperCommand(name, help=words) for name, words in LAZY.items()}
        self.params = [VERSION_OPTION, *self.params]

    def resolve_command(
        self, ctx: "Context", args: list[str]
    ) -> "tuple[str | None, Command | None, list[str]]":
        """The real command."""
        name, stub, rest = super().resolve_command(ctx, args)
        if name is None or stub is None:
            return name, stub, rest
        module, called = _ELSEWHERE.get(name, (name, "app"))
        app: typer.Typer = getattr(import_module(f"kawai_tools.cli.{module}"), called)
        return name, get_command(app), rest


def group(help_text: str, cls: type[TyperGroup] = KawaiGroup, *, completion: bool = False) -> typer.Typer:
    """A Typer application whose bare call prints its help."""
    return typer.Typer(
        cls=cls,
        help=help_text,
        callback=_show_help,
        invoke_without_command=True,
        rich_markup_mode=None,
        add_completion=completion,
        pretty_exceptions_enable=False,
    )


def _show_help(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


HELP = """
Manage llama.cpp builds and GGUF models on your own machine.

\b
kawai libs pull
kawai catalog list
kawai catalog pull Qwen3-0.6B-Q8_0
kawai models list
"""


def root() -> "Command":
    """The command line as a whole."""
    return get_command(group(HELP, LazyGroup, completion=True))
