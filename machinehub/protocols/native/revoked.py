"""What a listener hears whose token is not valid any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from machinehub.principal import Principal
from machinehub.session.port import Closed, Ending

Watch = Callable[[Principal, Callable[[], None]], Callable[[], None]]
"""`watch(principal, then)` calls `then` when the principal's token is not valid any more, and
returns what ends that.
"""
REVOKED: Final = Closed(Ending.REVOKED, "the token is not valid any more")
