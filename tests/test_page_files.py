"""The files of the admin page, without a browser: what was vendored, and that what one names is there."""

import gzip
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

import kawai_tools

UI = Path(kawai_tools.__file__).parent / "ui"
VENDOR = UI / "vendor"
VENDORED = json.loads((VENDOR / "vendored.json").read_text())
SCRIPTS = sorted(path for path in UI.rglob("*.js") if VENDOR not in path.parents)


def test_what_is_vendored_is_what_was_pinned() -> None:
    digests = {name: digest for package in VENDORED for name, digest in package["files"].items()}
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in VENDOR.iterdir()}
    del found["vendored.json"]
    assert found == digests
    pins = (Path(__file__).parents[1] / "scripts" / "vendor-ui").read_text()
    for package in VENDORED:
        assert f'"{package["version"]}"' in pins
        assert f'"{package["package"]}"' in pins
        assert any(name.endswith(".LICENSE.txt") for name in package["files"])


def test_libraries_are_small() -> None:
    libraries = [path for path in VENDOR.iterdir() if path.suffix in {".js", ".css"}]
    assert sum(len(gzip.compress(path.read_bytes())) for path in libraries) < 45_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(UI).as_posix())
def test_a_script_imports_what_is_there(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("//"), "it says what it is for"
    assert len(text.splitlines()) <= 400
    for name in re.findall(r'(?:from|import\()\s*"([^"]+)"', text):
        assert name.startswith("."), name
        target = (script.parent / name).resolve()
        assert target.is_file(), name
        if target.parent == VENDOR:
            continue
        exported = target.read_text()
        for words in re.findall(rf'import \{{([^}}]+)\}} from "{re.escape(name)}"', text):
            for word in (each.strip() for each in words.split(",")):
                pattern = rf"export (async )?(function\*?|const|class) {word}\b|export \{{[^}}]*\b{word}\b"
                assert re.search(pattern, exported), (name, word)
                assert len(re.findall(rf"\b{word}\b", text)) > 1, f"{word} is imported and not used"


def test_nothing_in_it_is_from_elsewhere() -> None:
    """No address, no markup made of text, nothing that the page's policy would have to allow."""
    for path in [*SCRIPTS, UI / "index.html", UI / "style.css"]:
        text = path.read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path
        assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|new Function|document\.write", text), (
            path
        )
    assert 'style="' not in (UI / "index.html").read_text()


def test_what_the_document_loads_is_there() -> None:
    named = re.findall(r'(?:href|src)="([^"]+)"', (UI / "index.html").read_text())
    assert [name for name in named if not name.startswith("../") and not (UI / name).is_file()] == []
    needed, found = [UI / "app.js"], set()
    while needed:
        path = needed.pop()
        found.add(path.relative_to(UI).as_posix())
        imported = re.findall(r'^(?:import|export) [^;]*?from ?"(\.[^"]+)"', path.read_text(), re.MULTILINE)
        needed += [(path.parent / name).resolve() for name in imported]
        needed = [each for each in needed if each.relative_to(UI).as_posix() not in found]
    scripts = {name for name in named if name.endswith(".js")}
    assert scripts == found, "what the first view needs is asked for at once, and nothing more"
