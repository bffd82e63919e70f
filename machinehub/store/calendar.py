"""The calendars of all machines: what is due next, and what the last times came to.

What an active version says of its machine's calendar is in `calendar`, with the next time of each
entry; it is set in the transaction that activates the version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from machinehub.calendar import CalendarEntry
from machinehub.ids import MachineId
from machinehub.store.engine import transaction
from machinehub.store.tables import calendar, calendar_runs, images, versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

RUNS_KEPT: Final = 100
DUE_AT_ONCE: Final = 100


class Due(NamedTuple):
    machine_id: MachineId
    entry: CalendarEntry
    due_at_ms: int | None
    """The next time, or the first that has passed; None for never."""


class Run(NamedTuple):
    """What one time came to."""

    at_ms: int
    """Which time it was."""
    ran_at_ms: int
    outcome: str
    """`accepted`, or a code of docs/errors.md."""
    detail: str
    seq: int | None


async def set_calendar(
    connection: AsyncConnection, machine_id: MachineId, number: int, *, now_ms: int
) -> None:
    """From now on a machine has the calendar of this version. Entries that stay as they are keep
    their next time.
    """
    query = (
        sa.select(images.c.definition)
        .join(versions, versions.c.digest == images.c.digest)
        .where(versions.c.machine_id == machine_id, versions.c.number == number)
    )
    definition = (await connection.execute(query)).scalar_one()
    said = msgspec.json.decode(definition, type=dict[str, msgspec.Raw]).get("cron")
    entries = msgspec.json.decode(said, type=list[CalendarEntry]) if said is not None else []
    mine = sa.select(calendar).where(calendar.c.machine_id == machine_id)
    known = {row.name: row for row in await connection.execute(mine)}
    wanted = {entry.name: msgspec.json.encode(entry) for entry in entries}
    gone = [name for name, row in known.items() if wanted.get(name) != row.entry]
    if gone:
        await connection.execute(
            calendar.delete().where(calendar.c.machine_id == machine_id, calendar.c.name.in_(gone))
        )
    rows = [
        {
            "machine_id": machine_id,
            "name": entry.name,
            "entry": wanted[entry.name],
            "due_at_ms": entry.next_after(now_ms),
        }
        for entry in entries
        if entry.name in gone or entry.name not in known
    ]
    if rows:
        await connection.execute(calendar.insert(), rows)


async def forget_calendar(connection: AsyncConnection, machine_id: MachineId) -> None:
    """The machine is deleted."""
    for table in (calendar, calendar_runs):
        await connection.execute(table.delete().where(table.c.machine_id == machine_id))


class CalendarStore:
    """Every method is one transaction, and raises `Unavailable` when the database does not
    answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def due(self, now_ms: int) -> list[Due]:
        """Some of the entries whose time has come, the longest due first."""
        query = (
            sa.select(calendar)
            .where(calendar.c.due_at_ms <= now_ms)
            .order_by(calendar.c.due_at_ms)
            .limit(DUE_AT_ONCE)
        )
        async with transaction(self._engine) as connection:
            return [_to_due(row) for row in await connection.execute(query)]

    async def of_machine(self, machine_id: MachineId) -> list[tuple[Due, list[Run]]]:
        """A machine's calendar, each entry with its last runs, the newest first."""
        entries = sa.select(calendar).where(calendar.c.machine_id == machine_id)
        runs = (
            sa.select(calendar_runs)
            .where(calendar_runs.c.machine_id == machine_id)
            .order_by(calendar_runs.c.at_ms.desc())
        )
        async with transaction(self._engine) as connection:
            found = [_to_due(row) for row in await connection.execute(entries)]
            by_name: dict[str, list[Run]] = {each.entry.name: [] for each in found}
            for row in await connection.execute(runs):
                if row.name in by_name:
                    by_name[row.name].append(_to_run(row))
        return [(each, by_name[each.entry.name][:RUNS_KEPT]) for each in found]

    async def ran(self, due: Due, runs: Sequence[Run], *, next_ms: int | None) -> None:
        """Notes what came of times that were due, and the next one. Does nothing if another hub on
        this database noted it first, or the calendar was changed meanwhile.
        """
        name, machine_id = due.entry.name, due.machine_id
        advance = (
            calendar.update()
            .where(
                calendar.c.machine_id == machine_id,
                calendar.c.name == name,
                calendar.c.due_at_ms == due.due_at_ms,
            )
            .values(due_at_ms=next_ms)
        )
        mine = sa.and_(calendar_runs.c.machine_id == machine_id, calendar_runs.c.name == name)
        eldest = (
            sa.select(calendar_runs.c.at_ms)
            .where(mine)
            .order_by(calendar_runs.c.at_ms.desc())
            .offset(RUNS_KEPT)
            .limit(1)
            .scalar_subquery()
        )
        rows: list[dict[str, Any]] = [
            {"machine_id": machine_id, "name": name, **_row(each)} for each in runs[-RUNS_KEPT:]
        ]
        async with transaction(self._engine) as connection:
            if not (await connection.execute(advance)).rowcount:
                return
            if rows:
                same = calendar_runs.c.at_ms.in_([row["at_ms"] for row in rows])
                await connection.execute(calendar_runs.delete().where(mine, same))
                await connection.execute(calendar_runs.insert(), rows)
            await connection.execute(
                calendar_runs.delete().where(mine, calendar_runs.c.at_ms <= eldest)
            )


def _to_due(row: Any) -> Due:
    entry = msgspec.json.decode(row.entry, type=CalendarEntry)
    return Due(MachineId(row.machine_id), entry, row.due_at_ms)


def _to_run(row: Any) -> Run:
    return Run(row.at_ms, row.ran_at_ms, row.outcome, row.detail.decode(), row.seq)


def _row(run: Run) -> dict[str, Any]:
    return run._asdict() | {"detail": run.detail.encode()}
