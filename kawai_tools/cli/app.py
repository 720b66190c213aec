"""``kawai``: the entry point, and the one place where a failure becomes a message and an exit code."""

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import TyperException

    from kawai_tools.cli.invocation import Invocation
    from kawai_tools.errors import KawaiError, UsageError

_OBJECTS_BETWEEN_LOOKS = 200_000


def main() -> None:
    """Run the command line and leave the process with its exit code.

    Looking for garbage while modules load, and taking the interpreter apart at the end, would cost a
    short command a tenth of its time each: the one is made rare, the other left out.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_LOOKS)
    _spare_imports()
    from kawai_tools.cli.output import close_quietly  # noqa: PLC0415 - loaded after the line above

    code = run(sys.argv[1:])
    close_quietly()
    os._exit(code)


def _spare_imports() -> None:
    """Load msgspec without typing_extensions, which it takes where it is there, and which takes longer."""
    name = "typing_extensions"
    if name not in sys.modules:
        sys.modules[name] = None  # type: ignore[assignment] # an import of it fails, which msgspec expects
        import msgspec  # noqa: F401, PLC0415

        del sys.modules[name]


def run(args: Sequence[str]) -> int:
    """Carry out one command line; the exit code. Only a shell's completion leaves by ``SystemExit``."""
    from kawai_tools.cli.invocation import Invocation  # noqa: PLC0415

    this = Invocation(args)
    try:
        _check_platform(sys.platform)
        _carry_out(this)
    except BaseException as error:  # noqa: BLE001 - the outermost: told apart below, and raised if unknown
        return _exit_code(this, error)
    return 0


def _check_platform(platform: str) -> None:
    if platform not in {"linux", "darwin"}:
        from kawai_tools.errors import UnsupportedPlatform  # noqa: PLC0415

        raise UnsupportedPlatform(f"kawai runs on Linux and macOS, not on {platform}")


def _carry_out(this: "Invocation") -> None:
    from kawai_tools.cli.groups import root  # noqa: PLC0415

    command = root()
    if "_KAWAI_COMPLETE" in this.environ:
        command.main(prog_name="kawai", obj=this)
    with command.make_context("kawai", list(this.args), obj=this) as context:
        command.invoke(context)


def _exit_code(this: "Invocation", error: BaseException) -> int:
    import typer  # noqa: PLC0415

    from kawai_tools.errors import EXIT_INTERRUPTED  # noqa: PLC0415

    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if not isinstance(error, Exception):
        raise error
    with contextlib.suppress(BrokenPipeError):  # the reader has what it wanted
        return 0 if isinstance(error, BrokenPipeError) else _told(this, error)
    return 0


def _told(this: "Invocation", error: Exception) -> int:
    from kawai_tools.cli.output import OutputFailed  # noqa: PLC0415
    from kawai_tools.errors import EXIT_FAILURE  # noqa: PLC0415

    output = this.output
    output.json = output.json or "--json" in _before_dashes(this.args)
    try:
        if isinstance(error, OutputFailed):
            output.say(f"error: {error}")
            return EXIT_FAILURE
        known = _known(this, error)
        output.error(known.info)
    except OutputFailed:
        return EXIT_FAILURE
    return known.exit_code


def _known(this: "Invocation", error: Exception) -> "KawaiError":
    import typer  # noqa: PLC0415

    from kawai_tools.errors import HomeNotWritable, Internal, KawaiError  # noqa: PLC0415

    if isinstance(error, KawaiError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage_error(error)
    if isinstance(error, OSError) and any(arg.startswith("--install-completion") for arg in this.args):
        return HomeNotWritable(
            f"cannot write {error.filename}: {error.strerror}",
            "put what --show-completion prints where your shell reads it",
        )
    from kawai_tools.cli import recording  # noqa: PLC0415 - for what should never happen

    return Internal(*recording.keep_traceback(this.places.state_dir, error, verbose=this.output.verbose))


def _before_dashes(args: Sequence[str]) -> Sequence[str]:
    return args[: args.index("--")] if "--" in args else args


def _usage_error(error: "TyperException") -> "UsageError":
    from kawai_tools.errors import UsageError  # noqa: PLC0415

    words = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help says how it is used" if context else None
    return UsageError(words[:1].lower() + words[1:], hint)
