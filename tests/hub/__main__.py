"""The local hub as a program: serves files until it is told to stop."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from .catalogue import count_bytes, describe_faults, parse_fault
from .local import LocalHub

_EPILOG = """\
examples:
  scripts/hub --add me/tiny=model.gguf
  scripts/hub --release b11434=llama-b11434-bin-ubuntu-x64.tar.gz
  scripts/hub --release b11434=built/ --release v0.6.0=nightly-tag.txt --latest v0.6.0
  scripts/hub --port 8080 --add me/tiny=models/ --throttle 20M
  scripts/hub --add me/tiny=model.gguf --misbehave 'cut:40%*2' --misbehave no-etag

A fault is written NAME[:ARGUMENT][*TIMES]; without *TIMES it strikes every time. PLACE is a number of bytes
(64K) or a share of the body (40%). --list-faults names all faults."""


def _addition(text: str) -> tuple[str, Path]:
    repo, equals, path = text.partition("=")
    if not equals or repo.count("/") != 1 or not all(repo.split("/")):
        raise argparse.ArgumentTypeError(f"{text!r} is not OWNER/REPO=PATH")
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return repo, Path(path)


def _release(text: str) -> tuple[str, Path]:
    tag, equals, path = text.partition("=")
    if not equals or not tag:
        raise argparse.ArgumentTypeError(f"{text!r} is not TAG=PATH")
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return tag, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/hub",
        description="Serve files as a Hugging Face hub and GitHub's releases would, with their CDN,\n"
        "on 127.0.0.1, until Ctrl-C or SIGTERM. The first line on stdout is the hub's URL.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--add",
        metavar="OWNER/REPO=PATH",
        action="append",
        default=[],
        type=_addition,
        help="serve a file, or all files under a directory, on this repository's main branch; repeatable",
    )
    add(
        "--release",
        metavar="TAG=PATH",
        action="append",
        default=[],
        type=_release,
        help="offer a file, or all files in a directory, as assets of this llama.cpp release, a pre-release; "
        "repeatable, the newest last",
    )
    add(
        "--latest",
        metavar="TAG",
        action="append",
        default=[],
        help="make this release a full one: releases/latest is the newest of those; repeatable",
    )
    add(
        "--port", type=int, default=0, help="the hub's port (default: any free one); the CDN's is always free"
    )
    add("--root", type=Path, metavar="DIR", help="keep the contents here (default: a temporary directory)")
    add(
        "--throttle", type=count_bytes, metavar="RATE", help="bytes a second on each CDN connection, e.g. 20M"
    )
    add(
        "--page-size",
        type=int,
        default=1000,
        metavar="N",
        help="entries on a page of a listing (default: 1000)",
    )
    add("--ready-file", type=Path, metavar="FILE", help="write the hub's URL to FILE when it listens")
    add(
        "--misbehave",
        metavar="FAULT",
        action="append",
        default=[],
        type=_fault_text,
        help="go wrong in this way; repeatable",
    )
    add("--list-faults", action="store_true", help="name the faults and leave")
    return parser


def _fault_text(text: str) -> str:
    try:
        parse_fault(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _fill(hub: LocalHub, repo: str, source: Path) -> None:
    if source.is_file():
        hub.add_file(repo, source.name, source)
    for path in sorted(found for found in source.rglob("*") if found.is_file()):
        hub.add_file(repo, path.relative_to(source).as_posix(), path)


def _offer(hub: LocalHub, tag: str, source: Path, *, latest: bool) -> None:
    files = sorted(path for path in source.iterdir() if path.is_file()) if source.is_dir() else [source]
    hub.add_release(tag, {path.name: path for path in files}, prerelease=not latest)


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()


def _announce(ready: Path, endpoint: str) -> None:
    # renamed into place: who waits for the file never finds it empty
    part = ready.with_name(f"{ready.name}.part")
    part.write_text(f"{endpoint}\n")
    part.replace(ready)


def main(arguments: list[str] | None = None) -> int:
    """Run the hub as the arguments say; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list_faults:
        _say(describe_faults())
        return 0
    if unknown := set(options.latest) - {tag for tag, _ in options.release}:
        parser.error(f"--latest {min(unknown)}: there is no --release {min(unknown)}=PATH")
    with ExitStack() as stack:
        # blocked before threads start, which inherit it: the signal is for sigwait below alone
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        root = options.root or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kawai-hub-")))
        hub = LocalHub(root, page_size=options.page_size, throttle=options.throttle)
        for repo, source in options.add:
            _fill(hub, repo, source)
        for tag, source in options.release:
            _offer(hub, tag, source, latest=tag in options.latest)
        hub.misbehave(*(parse_fault(text) for text in options.misbehave))
        stack.callback(hub.stop)
        try:
            hub.start(options.port)
        except OSError as error:
            sys.stderr.write(f"scripts/hub: cannot listen on port {options.port}: {error.strerror}\n")
            return 1
        exports = (f"export HF_ENDPOINT={hub.endpoint}", f"export KAWAI_LIBS_API={hub.libs_api}")
        _say(hub.endpoint, *exports, "Ctrl-C stops the hub")
        if options.ready_file:
            _announce(options.ready_file, hub.endpoint)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
