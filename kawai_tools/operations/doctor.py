"""The row of the doctor."""

from kawai_tools.contract import Level, NoRequest, Operation, Payload
from kawai_tools.doctor import Check
from kawai_tools.workspace import Workspace


def _doctor(workspace: Workspace, _: NoRequest) -> list[Check]:
    return workspace.doctor.report()


TRIED = 300.0
"""Seconds: a build is tried, and a driver may compile for it for minutes (``libs/probing.py``)."""

DOCTOR = Operation(
    name="doctor",
    method="GET",
    path="/v1/doctor",
    request=NoRequest,
    result=Payload(list[Check]),
    level=Level.ADMIN,
    run=_doctor,
    waits=True,
    patience=TRIED,
    summary="Say what works, what does not, and what to do",
)
