"""Every error that a user can meet, with its stable code. `edge/problem.py` turns them into HTTP.

    HubError
      CallerError            the request is at fault; the same request fails again
        BadRequest 400, InvalidEvent 422, Unauthorised 401, Forbidden 403, NotFound 404,
        MethodNotAllowed 405, WaitTimeout 408, Conflict 409, PreconditionFailed 412, TooLarge 413,
        IdempotencyMismatch 422, RateLimited 429 (QuotaExceeded: of a project)
      MachineError 422       the machine's author is at fault: a turn or a build failed
        BuildFailed            with errors[]: file, line, column, message
        Rejected               an event was undone
        ViewFailed             a member's view of a session
      Unavailable 503        we are at fault, or too busy: try again

A broken assumption of our own is an `assert`, never one of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from machinehub.model import Fault

if TYPE_CHECKING:
    from machinehub.ids import NodeId


class HubError(Exception):
    """`code` is stable and documented in docs/errors.md; `detail` is for a person."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, code: str, detail: str, *, errors: list[dict[str, Any]] | None = None
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.errors = errors or []
        self.more: dict[str, Any] = {}
        """Further members of the problem (RFC 9457, 3.2)."""


class CallerError(HubError):
    pass


class BadRequest(CallerError):
    status, title = 400, "Bad request"


class InvalidEvent(CallerError):
    status, title = 422, "Invalid event"


class Unauthorised(CallerError):
    status, title = 401, "Not authorised"


class Forbidden(CallerError):
    status, title = 403, "Forbidden"


class NotFound(CallerError):
    status, title = 404, "Not found"


class MethodNotAllowed(CallerError):
    status, title = 405, "Method not allowed"


class WaitTimeout(CallerError):
    status, title = 408, "Timed out"


class Conflict(CallerError):
    status, title = 409, "Conflict"


class PreconditionFailed(CallerError):
    status, title = 412, "Precondition failed"


class TooLarge(CallerError):
    status, title = 413, "Too large"


class IdempotencyMismatch(CallerError):
    """As draft-ietf-httpapi-idempotency-key-header has it."""

    status, title = 422, "Another event has this id"


class RateLimited(CallerError):
    status, title = 429, "Too many requests"


class QuotaExceeded(RateLimited):
    title = "The project's quota is used up"


class MachineError(HubError):
    status, title = 422, "The machine failed"


class BuildFailed(MachineError):
    title = "The machine does not build"


class Rejected(MachineError):
    title = "The event was rejected"


class ViewFailed(MachineError):
    """Who may see what of the session cannot be found out: nothing of it is shown."""

    title = "The view failed"


class Unavailable(HubError):
    status, title = 503, "Unavailable"


class OwnedElsewhere(Unavailable):
    """Another node has the session, where several hubs share a database. Callers do not see it:
    `cluster/` asks that node.
    """

    def __init__(self, owner: NodeId) -> None:
        super().__init__("unavailable", "another node has the session; try again")
        self.owner = owner


class Moving(Unavailable):
    """The session is being handed over to another node, which will take what is sent to it."""

    def __init__(self) -> None:
        super().__init__("unavailable", "the session moves to another node; try again")


def fault_of(error: HubError) -> Fault:
    return Fault(error.code, error.detail, error.more.get("reason"))


def error_of(fault: Fault) -> HubError:
    """The error for what became of an event. The machine's fault, unless we know better."""
    error = _error_of(fault)
    if fault.reason is not None:
        error.more["reason"] = fault.reason
    return error


def _error_of(fault: Fault) -> HubError:
    match fault.code:
        case "session_deleted" | "no_such_version":
            return NotFound(fault.code, fault.detail)
        case "session_finished":
            return Conflict(fault.code, fault.detail)
        case "unavailable" | "session_damaged" | "image_damaged":
            return Unavailable(fault.code, fault.detail)
        case "forbidden":
            return Forbidden(fault.code, fault.detail)
    return Rejected(fault.code, fault.detail)
