"""Where each setting comes from, and that a broken one is named so that it can be found and mended."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kawai_tools.resolving import resolve
from kawai_tools.settings import KEYS, MASK, Source
from kawai_tools.values import parse_rate, parse_size
from tests.hub import LocalHub
from tests.program import Ended, Program
from tests.samples import tiny_gguf

SECRET = "hunter2-SECRET"
GIVEN: dict[str, tuple[str, object]] = {
    "home": ("{home}/elsewhere", "{home}/elsewhere"),
    "server": ("Box.lan", "http://Box.lan:11435"),
    "token": (SECRET, MASK),
    "token_file": ("{home}/token", "{home}/token"),
    "offline": ("yes", True),
    "host": ("127.0.0.2", "127.0.0.2"),
    "port": ("8081", 8081),
    "auth": ("on", True),
    "strict": ("yes", True),
    "insecure": ("1", True),
    "allow_hosts": ("Box.lan, models.example.org:8443", ["box.lan", "models.example.org:8443"]),
    "allow_origins": ("https://chat.example.org", ["https://chat.example.org"]),
    "engine": ("llama-server", "llama-server"),
    "max_models": ("2", 2),
    "max_queue": ("64", 64),
    "memory_budget": ("16GiB", 17_179_869_184),
    "keep_alive": ("-1", -1),
    "context_length": ("8192", 8192),
    "parallel": ("2", 2),
    "gpu_layers": ("0", 0),
    "threads": ("6", 6),
    "connections": ("3", 3),
    "limit_rate": ("1.5MiB/s", 1_572_864),
    "pull_hosts": ("Files.Example.org, b.example.org,", ["files.example.org", "b.example.org"]),
    "hub_endpoint": ("https://hub.example.org/hf/", "https://hub.example.org/hf"),
    "hub_token": (SECRET, MASK),
    "hub_token_hosts": ("mirror.example.org", ["mirror.example.org"]),
    "hub_home": ("{home}/hf", "{home}/hf"),
    "hub_cache": ("{home}/hf/hub", "{home}/hf/hub"),
    "ollama_models": ("{home}/ollama", "{home}/ollama"),
    "lmstudio_home": ("{home}/lmstudio", "{home}/lmstudio"),
    "http_proxy": (f"http://me:{SECRET}@proxy.example.org:3128", MASK),
    "https_proxy": (f"me:{SECRET}@proxy.example.org:3128", MASK),
    "no_proxy": ("localhost,.example.org", ["localhost", ".example.org"]),
    "catalogs": (
        "https://lists.example.org/a.yaml https://b.example.org/c?d=1",
        ["https://lists.example.org/a.yaml", "https://b.example.org/c?d=1"],
    ),
    "channel": ("stable", "stable"),
    "processor": ("vulkan", "vulkan"),
    "arch": ("arm64", "arm64"),
    "os": ("darwin", "darwin"),
    "libs_api": ("https://releases.example.org/api/", "https://releases.example.org/api"),
    "github_token": (SECRET, MASK),
    "ssl_cert_file": ("{home}/ca.pem", "{home}/ca.pem"),
}
"""What is put into a setting's variable, and what is shown of it."""


def _shown(ended: Ended) -> dict[str, dict[str, object]]:
    assert ended.code == 0, ended.err
    return {row["key"]: row for row in json.loads(ended.out)}


def _config(kawai: Program, words: str | bytes) -> Path:
    path = kawai.home / "kawai" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(words.encode() if isinstance(words, str) else words)
    return path


def test_every_setting_is_shown_with_what_is_known_of_it(kawai: Program) -> None:
    ended = kawai("config", "show", "--json")
    rows = json.loads(ended.out)
    assert [row["key"] for row in rows] == list(KEYS)
    for row in rows:
        assert list(row) == ["key", "value", "source", "variable", "description"]
        assert row["description"]
        assert row["variable"] in KEYS[row["key"]].variables
        assert row["source"] == ("environment" if row["key"] == "home" else "default")
    shown = _shown(ended)
    assert (shown["port"]["value"], shown["host"]["value"]) == (11435, "127.0.0.1")
    assert shown["hub_home"]["value"] == str(kawai.home / ".cache" / "huggingface")
    for_people = kawai("config", "show", "--verbose").out
    assert all(row["key"] in for_people and row["description"] in for_people for row in rows)


def _variables(home: Path, which: int) -> dict[str, str]:
    return {key.variables[which]: GIVEN[name][0].format(home=home) for name, key in KEYS.items()}


@pytest.mark.parametrize("which", [0, -1])
def test_every_variable_sets_its_setting(kawai: Program, which: int) -> None:
    variables = _variables(kawai.home, which)
    del variables["KAWAI_SERVER"]  # what is configured elsewhere is not shown here: tests/test_remote.py
    ended = kawai("config", "show", "--json", **variables)
    for name, row in _shown(ended).items():
        if name == "server":
            continue
        value = GIVEN[name][1]
        assert row["value"] == (value.format(home=kawai.home) if isinstance(value, str) else value)
        assert row["source"] == "environment"
    assert GIVEN.keys() == KEYS.keys()


def test_the_variables_of_others_are_honoured() -> None:
    theirs = "HF_TOKEN HF_ENDPOINT HF_HOME HTTP_PROXY HTTPS_PROXY NO_PROXY SSL_CERT_FILE"
    assert set(theirs.split()) <= {variable for key in KEYS.values() for variable in key.variables}


@pytest.mark.parametrize("name", KEYS)
def test_every_key_has_a_variable_of_kawais_own(name: str) -> None:
    assert any(variable.startswith("KAWAI_") for variable in KEYS[name].variables)


IN_FILE = {
    "offline": "true",
    "host": '"127.0.0.3"',
    "port": "8082",
    "engine": '"xllamacpp"',
    "max_models": "1",
    "max_queue": "5",
    "memory_budget": '"8G"',
    "keep_alive": "-1",
    "context_length": "2048",
    "parallel": "1",
    "gpu_layers": "99",
    "threads": "2",
    "connections": "4",
    "limit_rate": '"20M"',
    "pull_hosts": '["a.example.org", "b.example.org"]',
    "catalogs": '["https://lists.example.org/a.yaml"]',
    "auth": "true",
    "strict": "true",
    "insecure": '"no"',
    "allow_hosts": '["box.lan"]',
    "allow_origins": '["https://chat.example.org"]',
    "hub_endpoint": '"https://file.example.org"',
    "hub_token_hosts": '["a.example.org"]',
    "hub_home": '"/file/hf"',
    "hub_cache": '"/file/hub"',
    "ollama_models": '"/file/ollama"',
    "lmstudio_home": '"/file/lmstudio"',
    "http_proxy": '"http://file.example.org:1"',
    "https_proxy": '"http://file.example.org:1"',
    "no_proxy": '["localhost"]',
    "channel": '"stable"',
    "processor": '"cpu"',
    "arch": '"amd64"',
    "os": '"linux"',
    "libs_api": '"https://releases.example.org"',
    "ssl_cert_file": '"/file/ca.pem"',
}


def test_every_setting_but_home_and_secrets_can_stand_in_the_file(kawai: Program) -> None:
    assert IN_FILE.keys() == {name for name, key in KEYS.items() if key.in_file}
    _config(kawai, "# a comment\r\n" + "".join(f"{name} = {words}\r\n" for name, words in IN_FILE.items()))
    shown = _shown(kawai("config", "show", "--json"))
    assert {name for name, row in shown.items() if row["source"] == "config.toml"} == IN_FILE.keys()
    assert (shown["port"]["value"], shown["limit_rate"]["value"]) == (8082, 20_000_000)
    assert shown["pull_hosts"]["value"] == ["a.example.org", "b.example.org"]


def test_a_variable_wins_over_the_file_unless_it_is_empty(kawai: Program) -> None:
    _config(kawai, "".join(f"{name} = {words}\n" for name, words in IN_FILE.items()))
    given = _variables(kawai.home, 0) | {"KAWAI_HOME": str(kawai.home / "kawai")}
    del given["KAWAI_SERVER"]
    shown = _shown(kawai("config", "show", "--json", **given))
    assert {shown[name]["source"] for name in IN_FILE} == {"environment"}
    empty = {variable: "" for name in IN_FILE for variable in KEYS[name].variables}
    shown = _shown(kawai("config", "show", "--json", **empty))
    assert {shown[name]["source"] for name in IN_FILE} == {"config.toml"}


def test_a_flag_wins_over_all(kawai: Program, tmp_path: Path) -> None:
    _config(kawai, "port = 8082\noffline = false\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text("port = 8083\noffline = false\n")
    shown = _shown(kawai("--home", str(other), "config", "show", "--json", "--offline", KAWAI_OFFLINE="no"))
    assert (shown["home"]["value"], shown["home"]["source"]) == (str(other), "flag")
    assert (shown["offline"]["value"], shown["offline"]["source"]) == (True, "flag")
    assert (shown["port"]["value"], shown["port"]["source"]) == (8083, "config.toml")


def test_the_flag_the_variable_and_the_file_of_one_key(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("port = 1\n")
    environ = {"KAWAI_HOME": str(tmp_path), "KAWAI_PORT": "2"}
    levels: list[tuple[dict[str, object], dict[str, str]]] = [
        ({"port": 3}, environ),
        ({}, environ),
        ({}, {"KAWAI_HOME": str(tmp_path)}),
    ]
    found = [resolve(flags, variables) for flags, variables in levels]
    assert [(each.port, each.source("port")) for each in found] == [
        (3, Source.FLAG),
        (2, Source.ENVIRONMENT),
        (1, Source.FILE),
    ]


BROKEN: dict[str, tuple[str | bytes, int | None, str | None]] = {
    "syntax": ("port = 8\nhost = \noffline = true\n", 2, "host"),
    "no value": ("# x\n\nport\n", 3, "port"),
    "an open text": ('port = 8\nhost = "127.0.0.1\n', 2, "host"),
    "twice": ("port = 1\nhost = '::1'\nport = 2\n", 3, "port"),
    "inside a list": ('pull_hosts = [\n  "a.example.org"\n  "b.example.org"\n]\n', 3, "pull_hosts"),
    "an open list": ('port = 1\npull_hosts = [\n  "a.example.org",\n', None, "pull_hosts"),
    "unknown key": ("# x\nport = 8\nprot = 9\n", 3, "prot"),
    "unknown table": ("port = 8\n[models]\nport = 9\n", 2, "models"),
    "unknown quoted key": ('\n"po rt" = 1\n', 2, "po rt"),
    "unknown dotted key": ("port = 8\nserve.port = 9\n", 2, "serve"),
    "a text for a number": ('offline = true\nport = "many"\n', 2, "port"),
    "a fraction for a number": ("\nport = 80.5\n", 2, "port"),
    "a boolean for a number": ("\nport = true\n", 2, "port"),
    "a list for a number": ("\nport = [8081]\n", 2, "port"),
    "a date for a text": ("\nhost = 2026-01-01\n", 2, "host"),
    "a list for a text": ('\nhost = ["127.0.0.1"]\n', 2, "host"),
    "a list for a boolean": ("\noffline = [true]\n", 2, "offline"),
    "an empty list for a boolean": ("\noffline = []\n", 2, "offline"),
    "a list for a path": ('\nhub_home = ["/a", "/b"]\n', 2, "hub_home"),
    "a number for a path": ("\nssl_cert_file = 1\n", 2, "ssl_cert_file"),
    "a number for an address": ("\nhttp_proxy = 5\n", 2, "http_proxy"),
    "a table for a number": ("# x\n[port]\na = 1\n", 2, "port"),
    "numbers in a list": ("\npull_hosts = [1, 2]\n", 2, "pull_hosts"),
    "lists in a list": ('\npull_hosts = [["a.example.org"]]\n', 2, "pull_hosts"),
    "out of range": ("\nport = 65536\n", 2, "port"),
    "below range": ("\nconnections = 0\n", 2, "connections"),
    "negative": ("\nconnections = -1\n", 2, "connections"),
    "a rate of nothing": ("\nlimit_rate = 0\n", 2, "limit_rate"),
    "no unit": ('\nlimit_rate = "20 parsecs"\n', 2, "limit_rate"),
    "neither true nor false": ('\noffline = "maybe"\n', 2, "offline"),
    "no address": ('\nhub_endpoint = "huggingface.co"\n', 2, "hub_endpoint"),
    "another protocol": ('\nhub_endpoint = "ftp://hub.example.org"\n', 2, "hub_endpoint"),
    "a proxy of another kind": ('\nhttps_proxy = "socks5://proxy:1"\n', 2, "https_proxy"),
    "several lines": ("\nhost = '''\nport = 4\n'''\n", 2, "host"),
    "an empty text": ('\nhost = " "\n', 2, "host"),
    "home": ('\nhome = "/x"\n', 2, "home"),
    "token": (f'\nhub_token = "{SECRET}"\n', 2, "hub_token"),
    "a token, mistyped": (f'\nhub_tokens = "{SECRET}"\n', 2, "hub_tokens"),
    "a token, in another language": (f"\nhub_token: {SECRET}\n", 2, "hub_token"),
    "a proxy's password": (f'\nhttp_proxy = "ftp://me:{SECRET}@proxy"\n', 2, "http_proxy"),
    "an open proxy": (f'\nhttp_proxy = "http://me:{SECRET}@proxy\n', 2, "http_proxy"),
    "a proxy on a line of its own": (
        f'http_proxy = [\n"http://me:{SECRET}@proxy:1"\n"x"]\n',
        None,
        "http_proxy",
    ),
    "an address with a password": (f'\nhub_endpoint = "https://me:{SECRET}@hub"\n', 2, "hub_endpoint"),
    "not UTF-8": (b'port = 8\nhost = "\xff\xfe"\n', 2, "host"),
    "UTF-16": ("port = 8\n".encode("utf-16"), None, None),
    "a number of 5,000 digits": (f"offline = true\nport = {'9' * 5000}\n", None, None),
    "nested 20,000 deep": (f"offline = true\nport = {'[' * 20_000}\n", None, None),
    "a rate of 400 digits": (f'\nlimit_rate = "{"9" * 400}"\n', 2, "limit_rate"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_names_file_line_and_key(kawai: Program, what: str) -> None:
    words, line, key = BROKEN[what]
    path = _config(kawai, words)
    ended = kawai("config", "show", "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.error["code"] == "invalid_config"
    message = ended.error["message"]
    assert message.startswith(f"{path}")
    assert SECRET not in ended.err
    if key is not None:
        named = re.match(rf"{re.escape(str(path))}, line (\d+), key ([^:]*)", message)
        assert named, message
        assert line is None or int(named[1]) == line
        assert named[2].strip() == key
    assert "[Errno" not in message
    assert len(message) < 1000


def test_what_needs_no_setting_works_beside_a_broken_file(kawai: Program) -> None:
    path = _config(kawai, "port = \n")
    assert kawai("config", "path").out == f"{path}\n"
    assert kawai("--help").code == 0
    assert kawai("config", "show", "--home", str(kawai.home / "clean")).code == 0


def test_a_wrong_type_is_told_in_the_words_of_the_file(kawai: Program) -> None:
    for words in ("port = true\n", "[port]\na = 1\n"):
        _config(kawai, words)
        message = kawai("config", "show", "--json").error["message"]
        assert "0 to 65535" in message, message
        assert not re.search(r"True|\{'", message), message


def test_a_file_that_cannot_be_read_is_named_once(kawai: Program) -> None:
    path = kawai.home / "kawai" / "config.toml"
    path.mkdir(parents=True)
    ended = kawai("config", "show", "--json")
    assert (ended.code, ended.error["code"]) == (2, "invalid_config")
    assert ended.error["message"].count(str(path)) == 1
    assert "[Errno" not in ended.error["message"]


def test_a_fifo_is_no_configuration_and_nothing_waits_for_it(kawai: Program) -> None:
    path = kawai.home / "kawai" / "config.toml"
    path.parent.mkdir()
    os.mkfifo(path)
    with kawai.start("config", "show", "--json") as process:
        try:
            out, err = process.communicate(timeout=5)
        finally:
            process.kill()
    assert (process.returncode, out) == (2, "")
    assert str(path) in err


@pytest.mark.parametrize("place", ["missing", "a file"])
def test_no_file_is_no_error(kawai: Program, place: str) -> None:
    home = kawai.home / "kawai"
    if place == "a file":
        home.write_text("")
    assert kawai("config", "show").code == 0
    assert home.is_file() is (place == "a file")


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("KAWAI_PORT", "many"),
        ("KAWAI_PORT", "-1"),
        ("KAWAI_PORT", "9" * 400),
        ("KAWAI_OFFLINE", "maybe"),
        ("KAWAI_LIMIT_RATE", "fast"),
        ("KAWAI_LIMIT_RATE", "9" * 400),
        ("KAWAI_CONNECTIONS", "65"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", f"https://me:{SECRET}@hub.example.org"),
        ("HF_TOKEN", f"{SECRET}\n{SECRET}"),
        ("HTTPS_PROXY", f"socks5://me:{SECRET}@proxy"),
        ("KAWAI_HOME", "~nobody-of-this-name/kawai"),
        ("HF_HOME", "~nobody-of-this-name/hf"),
        ("SSL_CERT_FILE", "~nobody-of-this-name/ca.pem"),
    ],
)
def test_a_wrong_variable_is_named(kawai: Program, variable: str, words: str) -> None:
    ended = kawai("config", "show", "--json", **{variable: words})
    assert (ended.code, ended.out) == (2, "")
    assert ended.error["code"] == "invalid_config"
    assert variable in ended.error["message"]
    assert SECRET not in ended.err


def test_a_home_that_nobody_has_is_a_usage_error(kawai: Program) -> None:
    ended = kawai("--json", "--home", "~nobody-of-this-name", "models", "list")
    assert (ended.code, ended.error["code"]) == (2, "usage")
    assert "--home" in ended.error["message"]


def test_a_directory_that_is_gone_is_no_bug_of_kawai(kawai: Program, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && {sys.executable} -m kawai_tools --home here config path"
    environ = {**kawai.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr


def test_a_wrong_rate_is_refused_before_anybody_is_asked(cli: Program, hub: LocalHub) -> None:
    hub.add_file("acme/Tiny", "Tiny-Q8_0.gguf", tiny_gguf())
    for words in ("fast", "0", "-1", "9" * 400):
        for more in ((), ("--dry-run",)):
            ended = cli("--json", "models", "pull", "acme/Tiny", f"--limit-rate={words}", *more)
            assert ended.code == 2, (words, more)
    assert not hub.requests


def test_secrets_are_masked_everywhere(kawai: Program) -> None:
    secrets = {
        "HF_TOKEN": SECRET,
        "HTTP_PROXY": f"http://me:{SECRET}@127.0.0.1:1",
        "https_proxy": f"http://me:{SECRET}@127.0.0.1:1",
    }
    for args in (("config", "show"), ("config", "show", "--json"), ("config", "show", "--verbose")):
        ended = kawai(*args, **secrets)
        assert ended.code == 0
        assert SECRET not in ended.out + ended.err
    shown = _shown(kawai("config", "show", "--json", **secrets))
    assert [shown[key]["value"] for key in ("hub_token", "http_proxy", "https_proxy")] == [MASK] * 3
    assert _shown(kawai("config", "show", "--json"))["hub_token"]["value"] is None


def test_without_a_home_the_directories_are_the_platforms(cli: Program, hub: LocalHub) -> None:
    hub.add_file("acme/Tiny", "Tiny-Q8_0.gguf", tiny_gguf())
    del cli.environ["KAWAI_HOME"]
    path = Path(cli("config", "path").out.rstrip("\n"))
    assert path.is_relative_to(cli.home)
    assert (path.name, path.parent.name) == ("config.toml", "kawai")
    assert not path.parent.exists()
    path.parent.mkdir(parents=True)
    path.write_text("port = 8082\n")
    shown = _shown(cli("config", "show", "--json"))
    assert (shown["home"]["value"], shown["home"]["source"]) == (None, "default")
    assert shown["port"]["value"] == 8082
    assert cli("models", "pull", "acme/Tiny").code == 0
    made = {each.name: each.parent.name for each in cli.home.rglob("*")}
    assert (made["index.sqlite3"], made["models"]) == ("kawai", "kawai")


@pytest.mark.skipif(sys.platform == "darwin", reason="the XDG directories are not macOS's")
def test_the_xdg_directories_are_honoured(cli: Program, hub: LocalHub) -> None:
    hub.add_file("acme/Tiny", "Tiny-Q8_0.gguf", tiny_gguf())
    cli.environ |= {f"XDG_{kind}_HOME": str(cli.home / kind) for kind in ("CONFIG", "DATA", "STATE")}
    del cli.environ["KAWAI_HOME"]
    assert cli("config", "path").out == f"{cli.home}/CONFIG/kawai/config.toml\n"
    assert cli("models", "pull", "acme/Tiny").code == 0
    assert (cli.home / "DATA" / "kawai" / "index.sqlite3").is_file()
    assert not (cli.home / ".local").exists()


def test_path_is_json_too_and_a_home_is_made_absolute(kawai: Program) -> None:
    assert json.loads(kawai("config", "path", "--json").out) == f"{kawai.home}/kawai/config.toml"
    assert kawai("config", "path", "--home", "~/a/../b").out == f"{kawai.home}/a/../b/config.toml\n"
    assert Path(kawai("config", "path", "--home", "here").out.rstrip("\n")).is_absolute()


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ("20M", 20_000_000),
        ("1.5G", 1_500_000_000),
        ("512KiB", 524_288),
        (" 7 ", 7),
        ("1kb", 1000),
        ("2 TiB", 2 << 40),
    ],
)
def test_sizes(words: str, size: int) -> None:
    assert parse_size(words) == size
    assert parse_rate(f"{words}/s") == size


@given(st.one_of(st.text(max_size=20), st.from_regex(r"\A\d{1,400}(\.\d+)?\s?[KMGT]?i?B?\Z")))
@example("9" * 400)
@settings(max_examples=300, deadline=None)
def test_any_words_are_a_size_or_refused(words: str) -> None:
    for name in KEYS:
        _value_or_refused(name, words)


def _value_or_refused(name: str, words: str) -> None:
    try:
        KEYS[name].parse(words)
    except ValueError as error:
        refusal = str(error)
    else:
        return
    assert refusal


BAD_TABLES = {
    "models = 3": "must be tables",
    '[models]\n"Tiny" = 3': "must be a table",
    '[models."Tiny"]\ncolour = 3': "colour: there is no such setting of a model",
    '[models."Tiny"]\nport = 3': "port: there is no such setting of a model",
    '[models."Tiny"]\ncontext_length = "many"': "context_length: must be a whole number",
    '[models."Tiny"]\nparallel = 0': "parallel: must be a whole number from 1",
    '[models."Tiny"]\ntemperature = 11': "temperature: must be a number from 0 to 10",
    '[models."Tiny"]\ntemperature = "hot"': "temperature: must be a number",
    '[models."Tiny"]\ntemperature = true': "temperature: must be a number",
    '[models."Tiny"]\ntop_k = 1.5': "top_k: must be a whole number",
    '[models."Tiny"]\ntop_p = nan': "top_p: must be a number",
}


@pytest.mark.parametrize("words", BAD_TABLES)
def test_a_wrong_table_of_a_model_is_said_with_its_place(kawai: Program, words: str) -> None:
    path = _config(kawai, words + "\n")
    ended = kawai("models", "list", "--json")
    assert (ended.code, ended.error["code"]) == (2, "invalid_config")
    assert ended.error["message"].startswith(str(path))
    assert BAD_TABLES[words] in ended.error["message"]
