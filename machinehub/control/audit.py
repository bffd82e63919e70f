"""Who did what: a line of the hub's log for each thing that was changed over the API."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from machinehub.edge.admission import principal_of
from machinehub.model import Machine

if TYPE_CHECKING:
    from starlette.requests import Request

audit = logging.getLogger("machinehub.audit")


def note(request: Request, what: str, *about: Any) -> None:
    """`what` is %-formatted with `about`, of which machines are shown by name and id."""
    shown = [f"{each.name} ({each.id})" if isinstance(each, Machine) else each for each in about]
    audit.info(f"%s {what}", principal_of(request.scope).who, *shown)
