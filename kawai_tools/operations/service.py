"""The rows of the service."""

from kawai_tools.contract import Level, NoRequest, Operation, Payload, Where
from kawai_tools.service.manager import ServiceReport
from kawai_tools.workspace import Workspace


def _install(workspace: Workspace, _: NoRequest) -> ServiceReport:
    return workspace.service.install()


def _uninstall(workspace: Workspace, _: NoRequest) -> ServiceReport:
    return workspace.service.uninstall()


def _status(workspace: Workspace, _: NoRequest) -> ServiceReport:
    return workspace.service.status()


SERVICE_INSTALL = Operation(
    name="service.install",
    method="POST",
    path=None,
    request=NoRequest,
    result=Payload(ServiceReport),
    level=Level.ADMIN,
    run=_install,
    where=Where.HERE,
    summary="Have kawai serve run by itself, from login on",
)
SERVICE_UNINSTALL = Operation(
    name="service.uninstall",
    method="POST",
    path=None,
    request=NoRequest,
    result=Payload(ServiceReport),
    level=Level.ADMIN,
    run=_uninstall,
    where=Where.HERE,
    summary="Have kawai serve run by itself no more",
)
SERVICE_STATUS = Operation(
    name="service.status",
    method="GET",
    path=None,
    request=NoRequest,
    result=Payload(ServiceReport),
    level=Level.READ,
    run=_status,
    where=Where.HERE,
    summary="Say whether kawai serve runs by itself",
)
