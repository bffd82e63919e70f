"""Whether a request is tried again, and when. Decides without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from machinehub.clock import http_date_s
from machinehub.egress.rules import IDEMPOTENT

if TYPE_CHECKING:
    from machinehub.egress.rules import EgressRules

FIRST_S: Final = 0.5
MOST_S: Final = 30.0
TOO_MANY: Final = 429


def may_pass(method: str, status: int) -> bool:
    """Whether the same request may be answered otherwise a little later: it came too fast, or the
    other side is in trouble and to repeat it does no harm.
    """
    return status == TOO_MANY or (500 <= status <= 599 and method in IDEMPOTENT)


def retry_after_s(value: str | None, now_ms: int) -> float | None:
    """What a `Retry-After` says (RFC 9110, section 10.2.3): seconds, or a date."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(min(int(value.strip()[:9]), 10**9))
    at_s = http_date_s(value)
    return None if at_s is None else max(0.0, at_s - now_ms / 1000)


def next_try_s(
    rules: EgressRules, *, tries: int, passed_s: float, after_s: float | None, luck: float
) -> float | None:
    """In how many seconds the next try is, after `tries` that failed, the first of them `passed_s`
    ago; None for never. `luck`, from 0 to 1, spreads those of many sessions.
    """
    if tries >= rules.tries:
        return None
    wait_s = min(FIRST_S * 2 ** (tries - 1), MOST_S) * (0.75 + luck / 2)
    wait_s = max(wait_s, after_s or 0)
    return wait_s if passed_s + wait_s <= rules.within_s else None
