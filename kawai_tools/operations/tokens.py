"""The rows of tokens."""

from typing import Annotated

from msgspec import Meta

from kawai_tools.contract import Level, NoRequest, Nothing, Operation, Payload, Request
from kawai_tools.tokens import MOST_NAME, NewToken, Role, TokenRow, parse_lifetime
from kawai_tools.workspace import Workspace


class TokenCreateRequest(Request, frozen=True, kw_only=True):
    """``expires`` is a lifetime such as ``"30d"``; ``None`` is for ever."""

    name: Annotated[str, Meta(extra_json_schema={"maxLength": MOST_NAME})] | None = None
    role: Role = "user"
    expires: str | None = None


class TokenIdRequest(Request, frozen=True):
    """A row about one token."""

    id: str


def _create(workspace: Workspace, request: TokenCreateRequest) -> NewToken:
    lifetime = parse_lifetime(request.expires) if request.expires is not None else None
    return workspace.tokens.create(role=request.role, name=request.name, lifetime=lifetime)


def _list(workspace: Workspace, _: NoRequest) -> list[TokenRow]:
    return workspace.tokens.all()


def _revoke(workspace: Workspace, request: TokenIdRequest) -> None:
    workspace.tokens.revoke(request.id)


TOKENS_CREATE = Operation(
    name="tokens.create",
    method="POST",
    path="/v1/tokens",
    request=TokenCreateRequest,
    result=Payload(NewToken, status=201),
    level=Level.ADMIN,
    run=_create,
    summary="Make a token, which is shown this once",
)
TOKENS_LIST = Operation(
    name="tokens.list",
    method="GET",
    path="/v1/tokens",
    request=NoRequest,
    result=Payload(list[TokenRow]),
    level=Level.ADMIN,
    run=_list,
    summary="List the tokens",
)
TOKENS_REVOKE = Operation(
    name="tokens.revoke",
    method="DELETE",
    path="/v1/tokens/{id}",
    request=TokenIdRequest,
    result=Nothing(),
    level=Level.ADMIN,
    run=_revoke,
    summary="Make a token useless",
)
