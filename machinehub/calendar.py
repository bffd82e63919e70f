"""The calendar of a machine: events that its sessions are sent at certain times, as cron says them.

Decides, without I/O: which times an expression means, in its time zone (summer time included), and
which of them are made up for when no hub ran. Expressions have the five fields of cron(8); cronsim
reads them.
"""

from __future__ import annotations

import datetime as dt
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from machinehub.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES_MAX: Final = 32
"""Of one machine."""
FIELDS: Final = 5
MADE_UP_MAX: Final = 1_000
"""Times that `catch_up = "all"` makes up for at once: a machine that is sent an event each minute
has missed 1 440 in a day.
"""
LATE_MS: Final = 60_000
"""A time that is missed by less is not missed."""


class CalendarEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table `[[cron]]` of machinehub.toml."""

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    expression: Annotated[str, msgspec.Meta(max_length=200)]
    session: str
    event: str | dict[str, Any]
    """Its type alone, or with what it carries."""
    zone: Annotated[str, msgspec.Meta(max_length=100)] = "UTC"
    """A name of the IANA time zone database."""
    catch_up: Literal["all", "last", "none"] = "last"
    """Which times are made up for that passed while no hub ran."""

    @property
    def whole_event(self) -> dict[str, Any]:
        return {"type": self.event} if isinstance(self.event, str) else self.event

    @property
    def event_json(self) -> bytes:
        return msgspec.json.encode(self.whole_event)

    def times_after(self, after_ms: int) -> Iterator[int]:
        """The times that it means, in milliseconds since 1970."""
        zone = ZoneInfo(self.zone)
        after = dt.datetime.fromtimestamp(after_ms / 1000, zone)
        for each in CronSim(self.expression, after):
            yield int(each.timestamp() * 1000)

    def next_after(self, after_ms: int) -> int | None:
        """None for one that never comes, such as the 30th of February."""
        try:
            return next(self.times_after(after_ms), None)
        except (CronSimError, OverflowError):
            return None

    def due(self, first_ms: int, now_ms: int) -> list[int]:
        """The times from `first_ms` on that the machine is to be sent its event for now."""
        passed = takewhile(lambda at_ms: at_ms <= now_ms, self.times_after(first_ms))
        if self.catch_up == "all":
            return [first_ms, *islice(passed, MADE_UP_MAX - 1)]
        last = first_ms
        for last in passed:  # noqa: B007 - which is the last of them
            pass
        return [last] if self.catch_up == "last" or now_ms - last <= LATE_MS else []


def check_calendar(entries: list[CalendarEntry]) -> None:
    """Raises `BadRequest`."""
    if len(entries) > ENTRIES_MAX:
        raise _wrong(f"a machine has at most {ENTRIES_MAX}")
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise _wrong("each has a name of its own")
    for entry in entries:
        _check(entry)


def _check(entry: CalendarEntry) -> None:
    where = f"cron {entry.name!r}"
    if len(entry.expression.split()) != FIELDS:
        raise _wrong(f"{where}: an expression has {FIELDS} fields: minute hour day month weekday")
    try:
        ZoneInfo(entry.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise _wrong(f"{where}: there is no time zone {entry.zone!r}") from None
    try:
        CronSim(entry.expression, dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    except CronSimError as error:
        raise _wrong(f"{where}: {str(error)[:100]} in {entry.expression!r}") from None


def _wrong(detail: str) -> BadRequest:
    return BadRequest("invalid_cron", detail)
