"""What the tests of durability and of the past share: a hub on a database, sessions that sleep,
rows that are counted or damaged.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from machinehub.session.decide.lifecycle import Phase
from tests.support import Client, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

THROWS = """
import { assign, createMachine } from "xstate";
export default createMachine({ context: { n: 0 }, on: { INC: { actions: assign({ n: ({ context }) => context.n + 1 }) }, BOOM: { actions: [assign({ n: 99 }), () => { throw new Error("boom"); }] } } });
"""
TIMERS = """
import { assign, createMachine } from "xstate";
const log = (what) => assign({ log: ({ context }) => [...context.log, what] });
export default createMachine({
  context: { log: [] },
  initial: "idle",
  states: {
    idle: { on: { GO: "waiting" } },
    waiting: { after: { 500: { actions: log("500") }, 100: { actions: log("100") }, 60000: "done" }, on: { STOP: "idle" } },
    done: { type: "final" },
  },
});
"""


@contextlib.asynccontextmanager
async def hub_on(database_url: str, folder: Path, **settings: Any) -> AsyncIterator[Client]:
    async with running_hub(folder, database_url=database_url, workers=1, **settings) as client:
        yield client


async def send(
    client: Client, path: str, event: str = "increment", event_id: str | None = None, **headers: str
) -> Any:
    return await client.http.post(
        f"/{path}",
        json={"type": event},
        headers=({"Idempotency-Key": event_id} if event_id else {}) | headers,
    )


async def asleep(client: Client, machine: str, session: str) -> None:
    """Puts the session to sleep and waits until it has left memory, or at least its worker."""

    def is_asleep() -> bool:
        found = client.find(machine, session)
        if found is None or found.phase is Phase.ASLEEP:
            return True
        client.hub.sessions.housekeeper.let_go(found)
        return False

    await until(is_asleep)


async def count(client: Client, table: str) -> int:
    async with client.hub.engine.begin() as connection:
        found = await connection.execute(sa.text(f"SELECT count(*) FROM {table}"))
        return int(found.scalar_one())


async def damage(client: Client, sql: str, values: dict[str, Any]) -> None:
    async with client.hub.engine.begin() as connection:
        await connection.execute(sa.text(sql), values)
