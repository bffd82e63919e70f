"""A session's past: looked at, forked, replayed, read in pages, forgotten when the hub is told so.

On real databases.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING

from machinehub.clock import ManualClock
from machinehub.ids import MachineId, SessionId
from tests.durable import TIMERS, asleep, damage, hub_on, send
from tests.support import COUNTER, Client, problem, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_session_deleted_while_its_past_is_computed_is_gone_and_not_damaged(
    database_url: str, tmp_path: Path
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        for _ in range(3):
            await send(client, f"{machine}/s")
        await asleep(client, machine, "s")
        (worker,) = client.hub.pool.workers
        (pid,) = client.worker_pids()
        os.kill(pid, signal.SIGSTOP)  # the replay waits for the worker
        looking = asyncio.create_task(client.http.get(f"/{machine}/s?at=2"))
        await until(lambda: worker.owes)
        await client.http.delete(f"/api/v1/machines/{machine}/sessions/s")
        os.kill(pid, signal.SIGCONT)
        problem(await looking, 404, "no_such_session")


async def test_the_past_can_be_looked_at_and_forked(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        api = f"/api/v1/machines/{machine}/sessions"
        async with client.socket(f"{machine}/s") as socket:
            for number in range(600):  # two checkpoints
                await socket.send_raw(
                    {"type": "event", "id": str(number), "event": {"type": "increment"}}
                )
            for _ in range(600):
                await socket.until("ack")
        for seq in (1, 2, 256, 257, 300, 513, 600, 601):
            seen = (await client.http.get(f"/{machine}/s?at={seq}")).json()
            assert (seen["seq"], seen["snapshot"]["context"]) == (seq, {"count": seq - 1})
            assert (await client.http.get(f"{api}/s?at={seq}")).json()["snapshot"]["context"] == {
                "count": seq - 1
            }
        for bad, status, code in (
            ("0", 404, "no_such_seq"),
            ("602", 404, "no_such_seq"),
            ("x", 400, "invalid_seq"),
            ("-1", 400, "invalid_seq"),
            ("9" * 30, 400, "invalid_seq"),
        ):
            answer = await client.http.get(f"/{machine}/s?at={bad}")
            assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert (await client.http.get(f"/{machine}/none?at=1")).json()["code"] == "no_such_session"
        assert (await client.http.get(f"{api}/none")).status_code == 404
        forked = await client.http.post(f"{api}/s/fork", json={"at": 300, "session": "child/é"})
        assert forked.status_code == 201
        assert forked.json()["parent"] == {"id": "s", "at": 300}
        assert (await send(client, f"{machine}/child%2F%C3%A9")).json() == {
            "seq": 301,
            "outcome": "accepted",
            "changed": True,
            "taken": True,
            "snapshot": {
                "value": "active",
                "context": {"count": 300},
                "status": "active",
                "tags": [],
            },
        }
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 601
        assert (await client.http.get(f"/{machine}/child%2F%C3%A9?at=10")).json()["snapshot"][
            "context"
        ] == {"count": 9}
        for body, status, code in (
            ({"session": "s"}, 409, "session_exists"),
            ({"session": "child/é"}, 409, "session_exists"),
            ({"at": 602, "session": "x"}, 404, "no_such_seq"),
            ({"session": ""}, 400, "invalid_session_id"),
            ({"session": "x" * 129}, 400, "invalid_session_id"),
            ({"at": "x"}, 400, "invalid_body"),
        ):
            answer = await client.http.post(f"{api}/s/fork", json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), body
        for session in ("s", "child%2F%C3%A9"):
            replayed = (await client.http.post(f"{api}/{session}/replay")).json()
            assert replayed["verified"]
            assert replayed["checkpoints"]
        unnamed = (await client.http.post(f"{api}/s/fork")).json()
        assert (unnamed["seq"], len(unnamed["id"])) == (601, 12)


async def test_only_so_many_look_into_the_past_at_once(client: Client) -> None:
    machine, other = (
        await client.deploy(COUNTER, name="crowded"),
        await client.deploy(COUNTER, name="calm"),
    )
    async with client.socket(f"{machine}/s") as socket:
        for number in range(2000):
            await socket.send_raw(
                {"type": "event", "id": str(number), "event": {"type": "increment"}}
            )
            if number % 500 == 499:
                for _ in range(500):
                    await socket.until("ack")
    await send(client, f"{other}/s")
    looking = [
        asyncio.create_task(client.http.post(f"/api/v1/machines/{machine}/sessions/s/replay"))
        for _ in range(20)
    ]
    assert (await client.http.get(f"/{other}/s?at=1")).status_code == 200
    answers = [await task for task in looking]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert sum(answer.status_code == 200 for answer in answers) == 8
    assert (await client.http.get(f"/{machine}/s?at=1000")).json()["snapshot"]["context"] == {
        "count": 999
    }


async def test_damage_is_noticed_by_a_replay(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
        await asleep(client, machine, "s")
        api = f"/api/v1/machines/{machine}/sessions/s/replay"
        assert (await client.http.post(api)).json()["verified"] is True
        await damage(
            client,
            "UPDATE journal SET input = :input WHERE seq = 2",
            {"input": b'[1,7,{"type":"decrement"},{"id":"x"}]'},
        )
        assert (await client.http.post(api)).json()["verified"] is False
        await damage(client, "UPDATE checkpoints SET data = :data", {"data": b"\0" * 40})
        # It is made again from the journal, which is what counts.
        mended = await send(client, f"{machine}/s")
        assert (mended.status_code, mended.json()["seq"]) == (200, 3)
        assert mended.json()["snapshot"]["context"] == {"count": 0}


async def test_a_forks_timers_have_as_long_to_go_as_the_parents_had(
    database_url: str, tmp_path: Path
) -> None:
    clock = ManualClock()
    async with hub_on(database_url, tmp_path, clock=clock) as client:
        machine = await client.deploy(TIMERS)
        await send(client, f"{machine}/s", "GO")
        clock.move_to(clock.now_ms() + 200)
        client.hub.sessions.scheduler.fire()
        await client.http.post(
            f"/{machine}/s/wait", json={"condition": {"tag": "x"}, "timeout_ms": 300}
        )
        clock.move_to(clock.now_ms() + 10_000)
        forked = await client.http.post(
            f"/api/v1/machines/{machine}/sessions/s/fork", json={"at": 2, "session": "f"}
        )
        assert forked.status_code == 201
        began_ms = clock.now_ms()
        key = (await client.hub.session_store.record(MachineId(machine), SessionId("f"))).key
        due = sorted(due - began_ms for _, due in await client.hub.session_store.timers_of(key))
        assert due == [100, 500, 60_000]


async def test_the_journal_is_read_in_pages(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="pages")
    await client.http.put(f"/{machine}/s", json={"input": {"a": 1}})
    for number in range(4):
        await send(client, f"{machine}/s", event_id=f"e{number}")
    api = f"/api/v1/machines/{machine}/sessions/s/journal"
    first = (await client.http.get(f"{api}?limit=3")).json()
    rest = (await client.http.get(f"{api}?limit=3&cursor={first['next']}")).json()
    assert [entry["seq"] for entry in first["data"] + rest["data"]] == [1, 2, 3, 4, 5]
    assert rest["next"] is None
    assert first["data"][0]["input"] == {"a": 1}
    assert first["data"][1]["event"] == {"type": "increment"}
    assert first["data"][1]["id"] == "e0"
    assert json.loads(json.dumps(first["data"][1]["sender"]))["id"]
    for cursor in ("x", "1", "1.2.3"):
        assert (await client.http.get(f"{api}?cursor={cursor}")).json()["code"] == "invalid_cursor"


async def test_old_entries_go_when_the_hub_is_told_so(database_url: str, tmp_path: Path) -> None:
    async with hub_on(
        database_url, tmp_path, keep_journal=100, keep_checkpoints=1, keep_checkpoint_every=0
    ) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            for number in range(700):
                await socket.send_raw(
                    {"type": "event", "id": str(number), "event": {"type": "increment"}}
                )
            for _ in range(700):
                await socket.until("ack")
        await asleep(client, machine, "s")
        gone = await client.http.get(f"/{machine}/s?at=10")
        assert (gone.status_code, gone.json()["code"]) == (404, "history_pruned")
        assert (await client.http.post(f"/api/v1/machines/{machine}/sessions/s/replay")).json()[
            "verified"
        ]
    async with hub_on(database_url, tmp_path, keep_journal=100) as client:
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 700
        }
