"""Settings from flags, environment and ``config.toml``, each value with its source.

What is wrong is said of the flag, the variable, or file, line and key.
"""

from collections.abc import Mapping
from pathlib import Path

from kawai_tools.config_file import Value, read_config
from kawai_tools.errors import InvalidConfig
from kawai_tools.settings import KEYS, PER_MODEL, Key, Settings, Source
from kawai_tools.values import SAMPLING

_LONGEST = 80


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


def _parse(key: Key, text: str, where: str) -> object:
    try:
        return key.parse(text)
    except ValueError as error:
        shown = "its value" if key.secret or "@" in text else repr(text[:_LONGEST])
        raise InvalidConfig(f"{where} must be {error}, not {shown}") from None


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
