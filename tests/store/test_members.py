"""Keys of connect tokens, revocations, usage and the audit, on either database."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from machinehub.errors import Conflict, NotFound
from machinehub.ids import MachineId, ProjectId, SessionId
from machinehub.model import JwtKey
from tests.durable import send
from tests.support import COUNTER, running_hub

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = ProjectId("default"), ProjectId("other")


async def test_what_users_show_is_kept(tmp_path: Path, database_url: str) -> None:
    async with running_hub(tmp_path, database_url=database_url) as hub:
        store = hub.hub.members
        key = JwtKey(kid="k1", project=ONE, name="n", created_at_ms=1, secret=b"s\0\xff")
        await store.add_key(key)
        with pytest.raises(Conflict):
            await store.add_key(JwtKey(kid="k2", project=ONE, name="n", created_at_ms=2))
        assert await store.valid_keys() == [key]
        with pytest.raises(NotFound):
            await store.revoke_key(TWO, "k1", now_ms=3)
        await store.revoke_key(ONE, "k1", now_ms=3)
        assert await store.valid_keys() == []
        assert (await store.key_list(ONE))[0].revoked_at_ms == 3

        marks = [await store.revocations_mark()]
        for at_ms in (5, 6):  # the second takes the place of the first
            await store.revoke(ONE, now_ms=at_ms, sub="ada \0 ☃")
            marks.append(await store.revocations_mark())
        session = await store.revoke(
            ONE, now_ms=7, machine_id=MachineId("m"), session_id=SessionId("s/☃")
        )
        marks.append(await store.revocations_mark())
        found = await store.revocation_list(ONE)
        assert [(each.sub, each.session_id) for each in found] == [
            ("ada \0 ☃", None),
            (None, "s/☃"),
        ]
        assert await store.revocation_list(TWO) == []
        with pytest.raises(NotFound):
            await store.forget_revocation(TWO, session.id)
        await store.forget_revocation(ONE, session.id)
        marks.append(await store.revocations_mark())
        assert all(one != next_ for one, next_ in itertools.pairwise(marks))


async def test_what_a_project_has_is_counted(tmp_path: Path, database_url: str) -> None:
    async with running_hub(tmp_path, database_url=database_url) as hub:
        machine = await hub.deploy(COUNTER)
        await send(hub, f"{machine}/s")
        shown = (await hub.http.get("/api/v1/projects/default/usage")).json()["used"]
        assert (shown["machines"], shown["versions"], shown["sessions"]) == (1, 1, 1)
        assert shown["database_bytes"] > 100
        assert shown["live_sessions"] == 1
        await hub.http.post("/api/v1/projects", json={"name": "other"})
        other = (await hub.http.get("/api/v1/projects/other/usage")).json()["used"]
        assert set(other.values()) == {0}


async def test_who_did_what_is_kept_for_a_while(tmp_path: Path, database_url: str) -> None:
    async with running_hub(tmp_path, database_url=database_url) as hub:
        audit = hub.hub.keys.audit
        for number in range(5):
            await audit.add(ONE if number % 2 else None, "who \0", f"did {number}", now_ms=number)
        everything = await audit.page(None, before=None, limit=10)
        assert [each.what for each in everything] == [f"did {n}" for n in (4, 3, 2, 1, 0)]
        assert [each.what for each in await audit.page(ONE, before=None, limit=10)] == [
            "did 3",
            "did 1",
        ]
        rest = await audit.page(None, before=everything[1].id, limit=1)
        assert [each.what for each in rest] == ["did 2"]
        await audit.prune(before_ms=3)
        assert [each.at_ms for each in await audit.page(None, before=None, limit=10)] == [4, 3]
