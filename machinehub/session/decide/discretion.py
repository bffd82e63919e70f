"""What members are not told of a session whose machine says who sees what: the words of its errors,
which may quote what a member must not see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from machinehub.errors import HubError
    from machinehub.model import Fault

QUOTING: Final = frozenset({"machine_error", "access_failed", "snapshot_not_json", "invalid_event"})
"""Codes whose detail is of the machine's own making."""
WITHHELD: Final = "the machine failed; its log says how"
NOT_SHOWN: Final = "the machine's view failed, so nothing of the session is shown; its log says why"


def discreet(fault: Fault) -> Fault:
    """A fault as members may hear of it."""
    return msgspec.structs.replace(fault, detail=WITHHELD) if fault.code in QUOTING else fault


def discreet_error(error: HubError) -> HubError:
    """The same for an error."""
    return type(error)(error.code, WITHHELD) if error.code in QUOTING else error
