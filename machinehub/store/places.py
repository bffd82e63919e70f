"""Places of clients: up to which input of a session a client has heard, for protocols whose clients
cannot say so themselves when they come back.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from machinehub.store import statements as sql
from machinehub.store.stored import record_named

if TYPE_CHECKING:
    from collections.abc import Collection

    from machinehub.ids import MachineId, Seq, SessionId
    from machinehub.store.database import Connection, Database

KEPT_PER_SESSION: Final = 2_000
"""Of a session's clients, those that were heard of last."""


class PlaceStore:
    """The table `places`. Every method is one transaction, and raises `Unavailable` when the
    database does not answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, machine: MachineId, session: SessionId, client: bytes) -> Seq | None:
        """None for a client that was never heard of, or too long ago, and where there is no such
        session.
        """

        def work(connection: Connection) -> Seq | None:
            record = record_named(connection, machine, session)
            if record is None:
                return None
            rows = connection.fetch(sql.place_of, of_key=record.key, of_client=client)
            return rows[0][0] if rows else None

        return await self._database.read(work)

    async def keep(
        self, places: Collection[tuple[MachineId, SessionId, bytes, Seq]], *, now_ms: int
    ) -> None:
        """Notes (machine, session, client, seq), of which the seq only ever advances. Those in
        sessions that are not there are ignored.
        """
        ordered = sorted(places)

        def work(connection: Connection) -> None:
            for (machine, session), group in groupby(ordered, itemgetter(0, 1)):
                record = record_named(connection, machine, session)
                if record is None:
                    continue
                rows = [
                    {"key": record.key, "client": client, "seq": seq, "at_ms": now_ms}
                    for _, _, client, seq in group
                ]
                connection.run(sql.keep_place, rows)
                too_many = {"of_key": record.key, "of_kept": KEPT_PER_SESSION}
                connection.run(sql.forget_places, [too_many])

        await self._database.write(work, small=len(ordered) == 1)
