"""What a hub notes for itself in its database: that it could be written, and how sessions' time
stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.store import statements as sql

if TYPE_CHECKING:
    from machinehub.store.database import Connection, Database

WRITTEN: Final = "written"
CLOCK: Final = "clock"


class Notes:
    """Every method is one transaction, and raises `Unavailable` when the database does not answer,
    or cannot be written.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ping(self) -> None:
        """Writes a note that says nothing."""
        await self._keep(WRITTEN, b"")

    async def keep_clock(self, session_ms: int, wall_ms: int) -> None:
        """That sessions' time was `session_ms` when the computer's clock said `wall_ms`."""
        await self._keep(CLOCK, msgspec.msgpack.encode([session_ms, wall_ms]))

    async def clock(self) -> tuple[int, int] | None:
        """What `keep_clock` was told last."""
        rows = await self._database.read(
            lambda connection: connection.fetch(sql.note_named, of_name=CLOCK)
        )
        return msgspec.msgpack.decode(rows[0][0], type=tuple[int, int]) if rows else None

    async def forget_clock(self) -> None:
        await self._keep(CLOCK, None)

    async def _keep(self, name: str, value: bytes | None) -> None:
        def work(connection: Connection) -> None:
            if value is not None:
                connection.run(sql.keep_note, [{"name": name, "value": value}])
            else:
                connection.run(sql.delete_note, [{"of_name": name}])

        self._database.check_file()
        await self._database.write(work)
