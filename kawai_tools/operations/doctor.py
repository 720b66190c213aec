"""The row of the doctor."""

from kawai_tools.contract import Level, NoRequest, Operation, Payload, Where
from kawai_tools.doctor import Check
from kawai_tools.workspace import Workspace


def _doctor(workspace: Workspace, _: NoRequest) -> list[Check]:
    return workspace.doctor.report()


DOCTOR = Operation(
    name="doctor",
    method="GET",
    path=None,
    request=NoRequest,
    result=Payload(list[Check]),
    level=Level.READ,
    run=_doctor,
    where=Where.HERE,
    summary="Say what works, what does not, and what to do",
)
