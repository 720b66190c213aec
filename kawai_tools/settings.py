"""What can be configured: one frozen value, each key of which knows where its value came from.

A flag wins over a variable, a variable over ``config.toml``, that over the default. The table of keys
below is the only one: ``config show``, the reference in ``README.md`` and the error messages come from it.
Nothing is read at import; :func:`resolve` is given the flags and the environment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, cast

from kawai_tools.config_file import Value, read_config
from kawai_tools.errors import InvalidConfig
from kawai_tools.values import (
    ENGINES,
    SAMPLING,
    between,
    parse_bool,
    parse_engine,
    parse_host,
    parse_hosts,
    parse_names,
    parse_origins,
    parse_path,
    parse_proxy,
    parse_rate,
    parse_seconds,
    parse_size,
    parse_text,
    parse_url,
    parse_urls,
)

MASK = "********"
_LONGEST = 80


class Source(StrEnum):
    """Where a value came from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "config.toml"
    DEFAULT = "default"


class Key(NamedTuple):
    """What the table says of one setting."""

    variables: tuple[str, ...]
    description: str
    parse: Callable[[str], object]
    secret: bool = False
    in_file: bool = True
    kinds: tuple[type, ...] = (str,)


def _key(
    variables: str,
    description: str,
    parse: Callable[[str], object],
    *,
    default: Any = None,  # noqa: ANN401 - a dataclass default of the field's own type
    secret: bool = False,
    in_file: bool = True,
    kinds: tuple[type, ...] = (str,),
) -> Any:  # noqa: ANN401 - as dataclasses.field
    key = Key(tuple(variables.split()), description, parse, secret, in_file, kinds)
    return field(default=default, metadata={"key": key})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, resolved."""

    home: Path | None = _key(
        "KAWAI_HOME", "directory that holds everything of kawai", parse_path, in_file=False
    )
    offline: bool = _key(
        "KAWAI_OFFLINE", "open no connection to anywhere else", parse_bool, default=False, kinds=(bool, str)
    )
    host: str = _key("KAWAI_HOST", "address that kawai serve listens on", parse_host, default="127.0.0.1")
    port: int = _key(
        "KAWAI_PORT", "port that kawai serve listens on", between(0, 65535), default=11435, kinds=(int, str)
    )
    auth: bool = _key(
        "KAWAI_AUTH", "kawai serve asks for tokens", parse_bool, default=False, kinds=(bool, str)
    )
    strict: bool = _key(
        "KAWAI_STRICT",
        "kawai serve asks for tokens, also for reading",
        parse_bool,
        default=False,
        kinds=(bool, str),
    )
    insecure: bool = _key(
        "KAWAI_INSECURE",
        "kawai serve may listen beyond this machine without asking for tokens",
        parse_bool,
        default=False,
        kinds=(bool, str),
    )
    allow_hosts: tuple[str, ...] = _key(
        "KAWAI_ALLOW_HOSTS",
        "names by which kawai serve is known",
        parse_hosts,
        default=(),
        kinds=(list, str),
    )
    allow_origins: tuple[str, ...] = _key(
        "KAWAI_ALLOW_ORIGINS",
        "web pages' origins that may use kawai serve",
        parse_origins,
        default=(),
        kinds=(list, str),
    )
    engine: str = _key(
        "KAWAI_ENGINE", f"what runs models: {', '.join(ENGINES)}", parse_engine, default="auto"
    )
    max_models: int = _key(
        "KAWAI_MAX_MODELS", "models that are loaded at a time", between(1, 1000), default=3, kinds=(int, str)
    )
    max_queue: int = _key(
        "KAWAI_MAX_QUEUE",
        "requests that may wait for one model, beside those that it answers",
        between(1, 100_000),
        default=512,
        kinds=(int, str),
    )
    memory_budget: int | None = _key(
        "KAWAI_MEMORY_BUDGET",
        "memory that all loaded models may take (16G); else what is free, less a reserve",
        parse_size,
        kinds=(int, str),
    )
    keep_alive: int = _key(
        "KAWAI_KEEP_ALIVE",
        "seconds that an idle model stays loaded; -1 for ever",
        parse_seconds,
        default=300,
        kinds=(int, str),
    )
    context_length: int | None = _key(
        "KAWAI_CONTEXT_LENGTH",
        "tokens that a request may have, where the model allows it",
        between(1, 100_000_000),
        kinds=(int, str),
    )
    parallel: int | None = _key(
        "KAWAI_PARALLEL", "requests that a model answers at a time", between(1, 1000), kinds=(int, str)
    )
    gpu_layers: int | None = _key(
        "KAWAI_GPU_LAYERS", "layers of a model that go to the GPU", between(0, 100_000), kinds=(int, str)
    )
    threads: int | None = _key(
        "KAWAI_THREADS", "threads that a model computes with", between(1, 100_000), kinds=(int, str)
    )
    connections: int = _key(
        "KAWAI_CONNECTIONS", "connections a download may use", between(1, 64), default=8, kinds=(int, str)
    )
    limit_rate: int | None = _key(
        "KAWAI_LIMIT_RATE", "bytes per second a pull may take (20M)", parse_rate, kinds=(int, str)
    )
    pull_hosts: tuple[str, ...] = _key(
        "KAWAI_PULL_HOSTS",
        "further hosts that a server may fetch models from",
        parse_names,
        default=(),
        kinds=(list, str),
    )
    hub_endpoint: str = _key(
        "KAWAI_HUB_ENDPOINT HF_ENDPOINT",
        "address of the model hub",
        parse_url,
        default="https://huggingface.co",
    )
    hub_token: str | None = _key(
        "KAWAI_HUB_TOKEN HF_TOKEN",
        "token for gated and private models",
        parse_text,
        secret=True,
        in_file=False,
    )
    hub_token_hosts: tuple[str, ...] = _key(
        "KAWAI_HUB_TOKEN_HOSTS",
        "further hosts that get the token of the token file",
        parse_names,
        default=(),
        kinds=(list, str),
    )
    hub_home: Path = _key(
        "KAWAI_HUB_HOME HF_HOME",
        "directory of the hub's token file",
        parse_path,
        default=Path("~/.cache/huggingface"),
    )
    http_proxy: str | None = _key(
        "KAWAI_HTTP_PROXY http_proxy HTTP_PROXY", "proxy for http addresses", parse_proxy, secret=True
    )
    https_proxy: str | None = _key(
        "KAWAI_HTTPS_PROXY https_proxy HTTPS_PROXY", "proxy for https addresses", parse_proxy, secret=True
    )
    no_proxy: tuple[str, ...] = _key(
        "KAWAI_NO_PROXY no_proxy NO_PROXY",
        "hosts reached without a proxy",
        parse_names,
        default=(),
        kinds=(list, str),
    )
    catalogs: tuple[str, ...] = _key(
        "KAWAI_CATALOGS",
        "addresses of further catalogs; kawai catalog update fetches them",
        parse_urls,
        default=(),
        kinds=(list, str),
    )
    channel: str = _key(
        "KAWAI_CHANNEL",
        "llama.cpp builds that are followed: nightly, stable",
        parse_text,
        default="nightly",
    )
    processor: str | None = _key(
        "KAWAI_PROCESSOR", "what computes: cpu, cuda, rocm, vulkan, metal, sycl, openvino", parse_text
    )
    arch: str | None = _key("KAWAI_ARCH", "architecture of builds: amd64, arm64, s390x", parse_text)
    os: str | None = _key("KAWAI_OS", "system of builds: linux, darwin, windows", parse_text)
    libs_api: str = _key(
        "KAWAI_LIBS_API", "address of the release server's API", parse_url, default="https://api.github.com"
    )
    github_token: str | None = _key(
        "KAWAI_GITHUB_TOKEN GITHUB_TOKEN",
        "token that lifts the release server's rate limit",
        parse_text,
        secret=True,
        in_file=False,
    )
    ssl_cert_file: Path | None = _key(
        "KAWAI_SSL_CERT_FILE SSL_CERT_FILE", "certificates to trust instead of the system's", parse_path
    )
    models: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    """Settings of single models, by their ids in lower case: tables ``[models."ID"]`` of ``config.toml``."""

    sources: Mapping[str, Source] = field(default_factory=dict)

    def source(self, name: str) -> Source:
        """Where the value of this setting came from."""
        return self.sources.get(name, Source.DEFAULT)

    @property
    def config_dir(self) -> Path:
        """Where ``config.toml`` is."""
        return self.home or _platform_dir("config")

    @property
    def data_dir(self) -> Path:
        """Where models, builds and the index are."""
        return self.home or _platform_dir("data")

    @property
    def state_dir(self) -> Path:
        """Where ``run/`` and ``logs/`` are."""
        return self.home or _platform_dir("state")

    @property
    def config_file(self) -> Path:
        """The file that is read; it need not exist."""
        return self.config_dir / "config.toml"

    def shown(self, name: str) -> object:
        """The value as it may be shown: plain JSON types, secrets masked."""
        value = getattr(self, name)
        if value is not None and KEYS[name].secret:
            return MASK
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple) else value


KEYS: dict[str, Key] = {
    each.name: cast("Key", each.metadata["key"]) for each in fields(Settings) if "key" in each.metadata
}
"""The table: a setting's name, which is also its key in ``config.toml``, and what is said of it."""


def resolve(flags: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
    """Settings from flags that were given (absent or ``None``: not given), variables and ``config.toml``.

    Raises ``InvalidConfig`` naming the variable, or file, line and key.
    """
    values = {name: value for name, value in flags.items() if value is not None}
    sources = dict.fromkeys(values, Source.FLAG)
    for name, key in KEYS.items():
        for variable in key.variables:
            if name not in values and environ.get(variable, "") != "":
                values[name] = _parse(key, environ[variable], f"the variable {variable}")
                sources[name] = Source.ENVIRONMENT
    first = Settings(**values, sources=sources)  # type: ignore[arg-type]
    for name, found in read_config(first.config_file).items():
        if name == "models":
            values["models"] = _models_from_file(found)
            continue
        value = _from_file(name, found)
        if name not in values:
            values[name] = value
            sources[name] = Source.FILE
    values.setdefault("hub_home", Path("~/.cache/huggingface").expanduser())
    return Settings(**values, sources=sources)  # type: ignore[arg-type]


def _platform_dir(kind: str) -> Path:
    import platformdirs  # noqa: PLC0415 - not needed where KAWAI_HOME is set

    directories = platformdirs.PlatformDirs("kawai", appauthor=False)
    return {
        "config": directories.user_config_path,
        "data": directories.user_data_path,
        "state": directories.user_state_path,
    }[kind]


def _parse(key: Key, text: str, where: str) -> object:
    try:
        return key.parse(text)
    except ValueError as error:
        shown = "its value" if key.secret or "@" in text else repr(text[:_LONGEST])
        raise InvalidConfig(f"{where} must be {error}, not {shown}") from None


PER_MODEL = ("context_length", "parallel", "gpu_layers", "threads", "keep_alive")
"""Settings that a model may have for itself."""


def _models_from_file(found: Value) -> Mapping[str, Mapping[str, int | float]]:
    """The tables of single models."""
    if not isinstance(found.value, dict):
        raise InvalidConfig(f'{found.where}: must be tables such as [models."Qwen3-8B-Q8_0"]')
    models: dict[str, Mapping[str, int | float]] = {}
    for model, table in found.value.items():
        if not isinstance(table, dict):
            raise InvalidConfig(f"{found.where}: {model!r} must be a table", 'write [models."ID"] above it')
        if model.casefold() in models:
            raise InvalidConfig(f"{found.where}: {model!r} has two tables", "ids are the same in any case")
        models[model.casefold()] = {
            name: _of_model(name, Value(value, f"{found.where}: {model}: {name}"))
            for name, value in table.items()
        }
    return models


def _of_model(name: str, found: Value) -> int | float:
    if name in SAMPLING:
        try:
            return SAMPLING[name].check(found.value)
        except ValueError as error:
            raise InvalidConfig(f"{found.where}: must be {error}") from None
    if name not in PER_MODEL:
        known = ", ".join((*PER_MODEL, *SAMPLING))
        raise InvalidConfig(f"{found.where}: there is no such setting of a model", f"these are {known}")
    value = _from_file(name, found)
    if not isinstance(value, int):
        raise InvalidConfig(f"{found.where} must be a whole number")
    return value


def _from_file(name: str, found: Value) -> object:
    key = KEYS.get(name)
    if key is None:
        known = ", ".join(each for each, row in KEYS.items() if row.in_file)
        raise InvalidConfig(f"{found.where}: there is no such setting", f"the settings are {known}")
    if not key.in_file:
        raise InvalidConfig(f"{found.where}: this one can only be set by {key.variables[0]}")
    value = found.value
    if isinstance(value, list) and list in key.kinds and all(isinstance(each, str) for each in value):
        return _parse(key, ",".join(value), f"{found.where}:")
    if type(value) not in key.kinds or isinstance(value, list):
        raise InvalidConfig(f"{found.where}: must be {_wanted(key)}, not {_KINDS.get(type(value), 'a date')}")
    return _parse(key, str(value), f"{found.where}:")


_KINDS = {
    str: "a text",
    bool: "a boolean",
    int: "a whole number",
    float: "a fraction",
    list: "a list",
    dict: "a table",
}


def _wanted(key: Key) -> str:
    """What a value must be, in the words of its own parser."""
    try:
        key.parse("\0")
    except ValueError as error:
        return str(error)
    return " or ".join(_KINDS[kind] for kind in key.kinds)
