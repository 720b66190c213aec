"""What the API tells for the admin page's sake: what a removal frees, what goes on with a pull, what fits."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.hub import LocalHub
from tests.program import Daemon, Program, serving
from tests.samples import tiny_gguf
from tests.test_catalog_pull import at_hub, entry, lists

Json = dict[str, Any]


def frees(program: Program, model: str) -> int:
    shown: Json = json.loads(program("models", "show", model, "--json").out)
    return int(shown["frees"])


def test_a_removal_frees_what_nobody_else_has(kawai: Program) -> None:
    store = Path(kawai.environ["KAWAI_HOME"]) / "models"
    folder = store / "me" / "repo"
    folder.mkdir(parents=True)
    weights = len(tiny_gguf(folder / "one-Q8_0.gguf"))
    tiny_gguf(folder / "two-F16.gguf", name="Two")
    projection = len(tiny_gguf(folder / "mmproj-F16.gguf", projection=True))
    assert kawai("models", "index").code == 0
    rows = {row["id"]: row for row in json.loads(kawai("models", "list", "--json").out)["data"]}
    assert all(row["size"] > projection for row in rows.values())
    assert frees(kawai, "one-Q8_0") == weights
    assert f"{weights} B when it is removed" in kawai("models", "show", "one-Q8_0").out
    assert kawai("models", "rm", "two-F16").code == 0
    assert frees(kawai, "one-Q8_0") == weights + projection
    os.link(folder / "one-Q8_0.gguf", kawai.home / "elsewhere")
    assert frees(kawai, "one-Q8_0") == projection
    (folder / "linked.gguf").symlink_to(kawai.home / "elsewhere")
    assert kawai("models", "index").code == 0
    assert frees(kawai, "linked") == 0


def test_a_removal_frees_what_an_update_has_fetched_so_far(cli: Program, hub: LocalHub) -> None:
    hub.add_file("me/one-GGUF", "one-Q8_0.gguf", tiny_gguf())
    assert cli("models", "pull", "me/one-GGUF").code == 0
    before = frees(cli, "one-Q8_0")
    hub.add_file("me/one-GGUF", "one-Q8_0.gguf", tiny_gguf(name="Another") + os.urandom(3_000_000))
    hub.throttle = 500_000
    with cli.start("models", "update", "one-Q8_0") as update:
        while frees(cli, "one-Q8_0") < before + 100_000:
            assert update.poll() is None
        update.kill()
    assert frees(cli, "one-Q8_0") >= before + 100_000
    assert cli("models", "rm", "one-Q8_0").code == 0
    assert not list(cli.home.glob("kawai/models/.partial/*/*"))


def again(daemon: Daemon, path: str, body: Json) -> Json | None:
    """What goes on with a pull that was begun so."""
    assert daemon.ask("POST", path, body).status == 200
    found: Json | None = daemon.ask("GET", "/v1/pulls").json[0]["again"]
    return found


def test_a_pull_says_what_goes_on_with_it(tmp_path: Path, hub: LocalHub) -> None:
    hub.add_file("me/tiny-GGUF", "Tiny-Q8_0.gguf", tiny_gguf())
    plain = hub.add_plain("tiny.gguf", tiny_gguf(name="Plain"))
    program = Program(tmp_path, {"HF_ENDPOINT": hub.endpoint, "KAWAI_PULL_HOSTS": "127.0.0.1"})
    lists(program, entry("Small-Q8_0", at_hub("tiny-GGUF", "Tiny-Q8_0.gguf")))
    with serving(program) as daemon:
        asked: Json = {"model_url": "me/tiny-GGUF", "limit_rate": "900M", "connections": 2}
        assert again(daemon, "/v1/models/pull", asked) == {"path": "/v1/models/pull", "body": asked}
        assert again(daemon, "/v1/catalog/pull/Small-Q8_0", {}) == {
            "path": "/v1/catalog/pull/Small-Q8_0",
            "body": {},
        }
        (listed, *_) = json.loads(program("pulls", "list", "--json").out)
        assert listed["again"]["path"] == "/v1/catalog/pull/Small-Q8_0"
        assert again(daemon, "/v1/models/pull", {"model_url": f"{plain}?signature=secret"}) is None
        assert "secret" not in json.dumps(daemon.ask("GET", "/v1/pulls").json)


@pytest.mark.parametrize("face", ["cli", "http"])
def test_the_catalog_tells_by_size_what_fits(kawai: Program, face: str) -> None:
    gone = "https://huggingface.co/me/x/resolve/main"
    small, large, unknown = (entry(name, f"{gone}/{name}.gguf") for name in ("small", "large", "unknown"))
    small["files"]["model"][0]["size"] = "1 MB"
    large["files"]["model"][0]["size"] = "900 TB"
    lists(kawai, small, large, unknown)
    if face == "cli":
        rows = json.loads(kawai("catalog", "list", "--fit", "--json", "--category", "Text").out)
        table = kawai("catalog", "list", "--fit", "--category", "Text").out
        assert [line.split()[-2] for line in table.splitlines() if line.startswith("large")] == ["no"]
        assert "FITS" not in kawai("catalog", "list", "--category", "Text").out
    else:
        with serving(kawai) as daemon:
            for _ in range(2):  # also once the list without it is in memory
                rows = daemon.ask("GET", "/v1/catalog?category=Text&fit=true").json
                without = daemon.ask("GET", "/v1/catalog?category=Text").json
                assert {row["fit"] for row in without} == {None}
    found = {row["id"]: row["fit"] and row["fit"]["verdict"] for row in rows}
    assert {name: found[name] for name in ("small", "large", "unknown")} == {
        "small": "fits",
        "large": "no",
        "unknown": None,
    }
