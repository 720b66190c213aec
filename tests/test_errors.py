"""The tree of errors: drawn as it is, coded once, with the statuses and exit codes of the contract."""

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from kawai_tools import errors
from kawai_tools.errors import OUTCOMES, ErrorBody, ErrorInfo, ErrorType, KawaiError, from_info, tree

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
CONTRACT: dict[str, tuple[set[int], int]] = {
    "invalid_request": ({400, 405, 408, 413, 414, 415, 421, 431}, 2),
    "not_found": ({404}, 3),
    "not_allowed": ({401, 403}, 4),
    "conflict": ({409, 412}, 5),
    "upstream": ({502, 504}, 6),
    "integrity": ({422}, 7),
    "no_space": ({507}, 8),
    "unavailable": ({503, 429}, 9),
    "internal": ({500}, 70),
}
CODES = (
    *(
        "model_not_found",
        "invalid_id",
        "hub_token_required",
        "model_gated",
        "host_not_allowed",
        "bad_redirect",
    ),
    *("different_version", "in_use", "no_server", "no_space", "internal", "rate_limited", "offline"),
)
"""Codes that ``api.md`` or the issue give."""

CLASSES = tree()
IDS = [each.__name__ for each in CLASSES]


def drawing() -> list[tuple[int, str]]:
    """Depth and name of each class in the drawing."""
    lines = (errors.__doc__ or "").partition("::\n\n")[2].splitlines()
    found = [re.match(r" {4}((?:[│ ] {3}|[├└]── )*)(\w+)", line) for line in lines]
    return [(len(each[1]) // 4, each[2]) for each in found if each]


def test_the_drawing_is_the_tree() -> None:
    depths = [(len(each.__mro__) - len(KawaiError.__mro__), each.__name__) for each in CLASSES]
    assert drawing() == depths


def test_the_table_is_the_contract() -> None:
    table = {kind.value: (set(found.statuses), found.exit_code) for kind, found in OUTCOMES.items()}
    assert table == CONTRACT
    assert set(OUTCOMES) == set(ErrorType)


def test_codes_are_unique_and_those_promised_are_there() -> None:
    codes = Counter(each.code for each in CLASSES)
    assert [code for code, count in codes.items() if count > 1] == []
    assert set(CODES) <= set(codes)


@pytest.mark.parametrize("kind", CLASSES, ids=IDS)
def test_a_class_is_whole(kind: type[KawaiError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert kind.status in OUTCOMES[kind.type].statuses
    assert kind("x").exit_code == OUTCOMES[kind.type].exit_code
    assert kind.__doc__
    if kind is not KawaiError:
        assert all(
            above.type is kind.type
            for above in kind.__mro__[: kind.__mro__.index(KawaiError)]
            if isinstance(above, type) and issubclass(above, KawaiError)
        )
        row = f"| `{kind.code}` | `{kind.type}` | {kind.status} | {OUTCOMES[kind.type].exit_code} |"
        assert row in CONTRIBUTING


@pytest.mark.parametrize("kind", CLASSES, ids=IDS)
def test_what_another_kawai_reports_is_the_same_error_again(kind: type[KawaiError]) -> None:
    told = msgspec.json.encode(ErrorBody(kind("what happened", "what to do").info))
    again = from_info(msgspec.json.decode(told, type=ErrorBody).error)
    if kind is not KawaiError:  # the root itself is never raised
        assert type(again) is kind
    assert msgspec.json.encode(ErrorBody(again.info)) == told


@pytest.mark.parametrize("kind", list(ErrorType))
def test_a_code_of_a_later_version_keeps_its_type_and_is_passed_on_as_it_is(kind: ErrorType) -> None:
    info = ErrorInfo("of_tomorrow", kind, "what happened", None)
    error = from_info(info)
    assert (error.info, error.exit_code) == (info, OUTCOMES[kind].exit_code)


def test_a_code_of_another_type_is_not_taken_for_the_one_known_here() -> None:
    info = ErrorInfo("model_not_found", ErrorType.UPSTREAM, "what happened", None)
    assert (from_info(info).exit_code, from_info(info).info) == (6, info)


def test_the_shape_of_an_error() -> None:
    told = msgspec.json.encode(ErrorBody(errors.ModelNotFound("there is no model 'x'").info))
    assert told.startswith(
        b'{"error":{"code":"model_not_found","type":"not_found","message":"there is no model'
    )
    assert told.endswith(b'"hint":null}}')
