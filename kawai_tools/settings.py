"""What can be configured: one frozen value, each key of which knows where its value came from.

A flag wins over a variable, a variable over ``config.toml``, that over the default. The table of keys
below is the only one: ``config show``, the reference in ``README.md`` and the error messages come from it.
Nothing is read at import; ``resolving.py`` reads flags, environment and ``config.toml``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, cast

from kawai_tools.values import (
    ENGINES,
    SERVER_PORT,
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
    parse_server,
    parse_size,
    parse_text,
    parse_url,
    parse_urls,
)

MASK = "********"


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
    server: str | None = _key(
        "KAWAI_SERVER",
        "address of another kawai that commands are carried out on",
        parse_server,
        in_file=False,
    )
    token: str | None = _key("KAWAI_TOKEN", "token for that kawai", parse_text, secret=True, in_file=False)
    token_file: Path | None = _key(
        "KAWAI_TOKEN_FILE", "file that holds the token for that kawai", parse_path, in_file=False
    )
    offline: bool = _key(
        "KAWAI_OFFLINE", "open no connection to anywhere else", parse_bool, default=False, kinds=(bool, str)
    )
    host: str = _key("KAWAI_HOST", "address that kawai serve listens on", parse_host, default="127.0.0.1")
    port: int = _key(
        "KAWAI_PORT",
        "port that kawai serve listens on",
        between(0, 65535),
        default=SERVER_PORT,
        kinds=(int, str),
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
    hub_cache: Path | None = _key(
        "KAWAI_HUB_CACHE HF_HUB_CACHE",
        "where the hub's own tools keep what they fetched; else hub below their directory",
        parse_path,
    )
    ollama_models: Path | None = _key(
        "KAWAI_OLLAMA_MODELS OLLAMA_MODELS",
        "where Ollama keeps its models; else where it does by itself",
        parse_path,
    )
    lmstudio_home: Path | None = _key(
        "KAWAI_LMSTUDIO_HOME",
        "where LM Studio keeps its files; else where it does by itself",
        parse_path,
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


PER_MODEL = ("context_length", "parallel", "gpu_layers", "threads", "keep_alive")
"""Settings that a model may have for itself."""


def _platform_dir(kind: str) -> Path:
    import platformdirs  # noqa: PLC0415 - not needed where KAWAI_HOME is set

    directories = platformdirs.PlatformDirs("kawai", appauthor=False)
    return {
        "config": directories.user_config_path,
        "data": directories.user_data_path,
        "state": directories.user_state_path,
    }[kind]
