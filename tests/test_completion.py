"""What the shell offers after TAB, asked as shells ask; bash itself is asked where it can be."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import Ended, Program
from tests.samples import tiny_gguf

IDS = ["Other-Q4_0", "Tiny-Q8_0", "zeta/Tiny-Q8_0"]


@pytest.fixture
def stocked(kawai: Program) -> Program:
    """A home with three models, two of one stem."""
    for path in ("acme/Tiny/Tiny-Q8_0", "acme/Other/Other-Q4_0", "zeta/Tiny/Tiny-Q8_0"):
        _add(kawai, path)
    assert kawai("models", "index").code == 0
    return kawai


def _add(kawai: Program, path: str) -> None:
    file = kawai.home / "kawai" / "models" / f"{path}.gguf"
    file.parent.mkdir(parents=True, exist_ok=True)
    tiny_gguf(file)


def _offered(kawai: Program, words: str, shell: str = "bash") -> list[str]:
    """The lines that a shell gets for a command line that ends at the cursor; nothing may be on stderr."""
    ended = _asked(kawai, words, shell)
    assert (ended.code, ended.err) == (0, "")
    return ended.out.split("\n")[:-1] if ended.out.strip() else []


def _asked(kawai: Program, words: str, shell: str) -> Ended:
    return kawai(
        _KAWAI_COMPLETE=f"complete_{shell}",
        COMP_WORDS=words,
        COMP_CWORD=str(len(words.split(" ")) - 1),
        _TYPER_COMPLETE_ARGS=words,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )


@pytest.mark.parametrize("command", ["models show", "models rm", "--offline models verify --json"])
def test_models_are_offered_by_name(stocked: Program, command: str) -> None:
    assert sorted(_offered(stocked, f"kawai {command} ")) == IDS
    assert _offered(stocked, f"kawai {command} Tiny-Q8_0 ") == []


@pytest.mark.parametrize(
    ("begun", "offered"),
    [("T", ["Tiny-Q8_0"]), ("zeta/T", ["zeta/Tiny-Q8_0"]), ("Tiny-Q8_0", ["Tiny-Q8_0"]), ("nothing", [])],
)
def test_models_that_begin_so(stocked: Program, begun: str, offered: list[str]) -> None:
    assert _offered(stocked, f"kawai models show {begun}") == offered


def test_any_number_of_models_is_offered_for_an_export(stocked: Program) -> None:
    assert sorted(_offered(stocked, "kawai export x.tar ")) == IDS
    assert _offered(stocked, "kawai export x.tar Tiny-Q8_0 O") == ["Other-Q4_0"]


@pytest.mark.parametrize("command", ["fit", "run"])
def test_what_is_installed_and_what_the_catalog_has_is_offered_to_be_run(
    stocked: Program, command: str
) -> None:
    assert _offered(stocked, f"kawai {command} Tiny") == ["Tiny-Q8_0"]
    assert "Qwen3-0.6B-Q8_0" in _offered(stocked, f"kawai {command} Qwen3-0")
    _add(stocked, "acme/Qwen/Qwen3-0.6B-Q8_0")
    assert stocked("models", "index").code == 0
    assert _offered(stocked, f"kawai {command} Qwen3-0.6B-Q8").count("Qwen3-0.6B-Q8_0") == 1


@pytest.mark.parametrize("command", ["protect", "unprotect"])
def test_any_number_of_models_is_offered_for_protection(stocked: Program, command: str) -> None:
    assert _offered(stocked, f"kawai models {command} Tiny-Q8_0 O") == ["Other-Q4_0"]


def test_models_of_the_home_that_is_typed(stocked: Program, tmp_path: Path) -> None:
    home = stocked.environ["KAWAI_HOME"]
    for words in (f"kawai --home {home} models show O", f"kawai models show --home={home} O"):
        stocked.environ["KAWAI_HOME"] = str(tmp_path / "empty")
        assert _offered(stocked, words) == ["Other-Q4_0"]
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (
            "kawai ",
            {
                "models",
                "catalog",
                "libs",
                "pulls",
                "tokens",
                "serve",
                "ui",
                "run",
                "fit",
                "logs",
                "service",
                "doctor",
                "config",
                "export",
                "import",
                "outdated",
                "df",
                "prune",
            },
        ),
        ("kawai m", {"models"}),
        ("kawai e", {"export"}),
        (
            "kawai models ",
            {"list", "show", "pull", "ps", "index", "rm", "verify", "load", "unload"}
            | {"adopt", "scan", "outdated", "update", "protect", "unprotect"},
        ),
        ("kawai models l", {"list", "load"}),
        ("kawai pulls ", {"list", "attach", "cancel"}),
        ("kawai config ", {"show", "path"}),
        ("kawai --json mod", {"models"}),
        ("kawai zzz", set()),
        ("kawai models list ", set()),
    ],
)
def test_commands_are_offered(kawai: Program, words: str, offered: set[str]) -> None:
    assert set(_offered(kawai, words)) == offered
    assert not (kawai.home / "kawai").exists()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        ("kawai --", {"--home", "--json", "--quiet", "--verbose", "--offline", "--version"}),
        ("kawai models --", {"--home", "--json", "--quiet", "--verbose", "--offline"}),
        (
            "kawai models pull a/b --",
            {"--proj", "--force", "--dry-run", "--limit-rate", "--connections", "--json"},
        ),
        ("kawai models show --m", {"--metadata"}),
        ("kawai serve --", {"--host", "--port"}),
    ],
)
def test_options_are_offered(kawai: Program, words: str, some: set[str]) -> None:
    offered = _offered(kawai, words)
    assert some <= set(offered)
    assert all(each.startswith(words.rpartition(" ")[2]) for each in offered)


def _no_home(kawai: Program) -> None:
    shutil.rmtree(kawai.home / "kawai")


def _home_is_a_file(kawai: Program) -> None:
    _no_home(kawai)
    (kawai.home / "kawai").write_text("")


def _broken_config(kawai: Program) -> None:
    (kawai.home / "kawai" / "config.toml").write_text("port = \n")


def _broken_index(kawai: Program) -> None:
    (kawai.home / "kawai" / "index.sqlite3").write_bytes(b"garbage" * 1000)


def _newer_index(kawai: Program) -> None:
    index = kawai.home / "kawai" / "index.sqlite3"
    index.unlink()
    index.mkdir()


def _unmounted(kawai: Program) -> None:
    shutil.rmtree(kawai.home / "kawai" / "models")


def _wrong_variable(kawai: Program) -> None:
    kawai.environ["KAWAI_PORT"] = "many"


def _nobodys_home(kawai: Program) -> None:
    kawai.environ["KAWAI_HOME"] = "~nobody-of-this-name/kawai"


@pytest.mark.parametrize(
    "breaks",
    [
        _no_home,
        _home_is_a_file,
        _broken_config,
        _broken_index,
        _newer_index,
        _unmounted,
        _wrong_variable,
        _nobodys_home,
    ],
)
@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_broken_state_says_nothing(stocked: Program, shell: str, breaks: Callable[[Program], None]) -> None:
    breaks(stocked)
    ended = _asked(stocked, "kawai models show ", shell)
    offered = set(ended.out.split())
    assert ended.err == ""
    assert ended.code in {0, 1}
    assert offered <= set(IDS)
    assert offered == set() or breaks in {_broken_index, _newer_index, _unmounted}


@pytest.mark.parametrize(
    "words", ["", "kawai", "kawai models show '", 'kawai models show "T', "kawai \\", "x" * 10_000]
)
def test_odd_command_lines_say_nothing_wrong(stocked: Program, words: str) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert _asked(stocked, words, shell).err == ""


@pytest.mark.parametrize("words", ["kawai models nonsense ", "kawai nonsense "])
def test_nothing_follows_a_command_that_does_not_exist(kawai: Program, words: str) -> None:
    assert _offered(kawai, words) == []


def test_zsh_and_fish_are_offered_the_same(stocked: Program) -> None:
    assert sorted(_offered(stocked, "kawai models show ", "fish")) == IDS
    (first, *_) = zsh = _offered(stocked, "kawai models show ", "zsh")
    assert first.startswith("_arguments ")
    assert all(any(f'"{each}"' in line for line in zsh) for each in IDS)


HOSTILE = [
    "a$(touch made)",
    "b`touch made`",
    "c;touch made",
    "d*",
    "e|f",
    "g h",
    "i\nj",
    "k'l",
    "m\x1b[2J",
    "n&o",
    "p>q",
]


def test_a_name_from_a_stranger_is_no_shell_command(stocked: Program) -> None:
    """What TAB inserts is run by the next Enter, and file names are chosen by whoever made the repository."""
    for name in HOSTILE:
        _add(stocked, f"evil/Evil/{name}")
    assert stocked("models", "index").code == 0
    offered = _offered(stocked, "kawai models show ")
    assert set(IDS) <= set(offered)
    unquoted = [each for each in offered if set(each) & set("$`;*|&<>()\n\x1b")]
    assert unquoted == []


BASH = shutil.which("bash") or ""
_TAB = """
eval "$(kawai --show-completion)" || exit
COMP_WORDS=({words} "{last}")
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_kawai_completion kawai
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def _in_shell(kawai: Program, shell: str, script: str) -> Ended:
    """Run under a process that goes by a shell's name: it is found by the names of the parents."""
    folder = kawai.home / "shells"
    folder.mkdir(exist_ok=True)
    named = folder / shell
    if not named.exists():
        named.symlink_to(BASH)
    path = f"{Path(sys.executable).parent}:{kawai.environ['PATH']}"
    done = subprocess.run(
        [named, "-c", f"{script}\ntrue"],
        env=kawai.environ | {"PATH": path, "SHELL": str(named)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "last", "offered"),
    [
        ("kawai models show", "T", ["Tiny-Q8_0"]),
        ("kawai models show", "", IDS),
        ("kawai models", "ver", ["verify"]),
        ("kawai --quiet", "mo", ["models"]),
    ],
)
def test_bash_completes_with_the_script_that_is_shown(
    stocked: Program, words: str, last: str, offered: list[str]
) -> None:
    assert BASH
    ended = _in_shell(stocked, "bash", _TAB.format(words=words, last=last))
    assert (sorted(ended.out.split()), ended.err) == (offered, "")


INSTALLED = {
    "bash": (".bash_completions/kawai.sh", "complete_bash", ".bashrc"),
    "zsh": (".zfunc/_kawai", "#compdef kawai", ".zshrc"),
    "fish": (".config/fish/completions/kawai.fish", "complete --command kawai", None),
}


@pytest.mark.parametrize("shell", INSTALLED)
def test_completion_is_shown_and_installed(kawai: Program, shell: str) -> None:
    file, words, start = INSTALLED[shell]
    shown = _in_shell(kawai, shell, "kawai --show-completion")
    assert (shown.code, shown.err) == (0, "")
    assert words in shown.out
    assert not (kawai.home / file).exists()
    installed = _in_shell(kawai, shell, "kawai --install-completion")
    assert (installed.code, installed.err) == (0, "")
    assert words in (kawai.home / file).read_text()
    assert file in installed.out
    again = _in_shell(kawai, shell, "kawai --install-completion")
    assert again.code == 0
    if start:
        once = (kawai.home / start).read_text()
        assert once.count("kawai" if shell == "bash" else "zfunc") == 1
    assert not (kawai.home / "kawai").exists()


def test_a_start_file_that_cannot_be_written_is_named(kawai: Program) -> None:
    (kawai.home / ".bashrc").mkdir()
    ended = _in_shell(kawai, "bash", "kawai --install-completion; echo $?")
    assert ended.out.split()[-1] not in {"0", "70"}
    assert str(kawai.home / ".bashrc") in ended.err
    assert "Traceback" not in ended.err
