"""Sessions outlive clients, workers, the hub; what was acknowledged is there, what was not can be
settled by its id. On real databases.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.errors import Unavailable
from machinehub.limits import Limits
from machinehub.session.run import journal as journal_module
from tests.durable import THROWS, hub_on, send
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def fail_commits(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    *,
    apply: Callable[[int], bool] = lambda _: False,
) -> tuple[Callable[[], int], Callable[[], None]]:
    """Commits are answered `unavailable` from now on, done or not as `apply(number)` says.

    How many have failed, and what ends it.
    """
    store, commit, failed = client.hub.session_store, client.hub.session_store.commit, 0

    async def failing(items: Any) -> None:
        nonlocal failed
        failed += 1
        if apply(failed):
            await commit(items)
        raise Unavailable("unavailable", "the database is away")

    monkeypatch.setattr(store, "commit", failing)
    return lambda: failed, lambda: monkeypatch.setattr(store, "commit", commit)


async def accepted(client: Client, path: str, event_id: str) -> Any:
    """Sends an event again and again, until the hub takes it."""

    async def try_it() -> Any:
        answer = await send(client, path, event_id=event_id)
        return answer if answer.status_code == 200 else None

    return await until(try_it)


# --- restarts


async def test_a_restart_changes_nothing(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            acks = [await socket.event("increment", event_id=f"e{n}") for n in range(5)]
        await send(client, f"{machine}/crashed", event_id="c1")
    async with hub_on(database_url, tmp_path) as client:
        async with client.socket(f"{machine}/s") as socket:
            assert (await socket.until("snapshot"))["snapshot"]["context"] == {"count": 5}
            assert socket.seq == 6
            for n, ack in enumerate(acks):
                assert await socket.event("increment", event_id=f"e{n}") == ack
            again = await send(client, f"{machine}/s", event_id="e3")
            assert (
                again.status_code,
                again.json()["seq"],
                again.json()["snapshot"]["context"],
            ) == (200, 5, {"count": 5})
            assert (await socket.event("increment"))["seq"] == 7
        listed = (await client.http.get(f"/api/v1/machines/{machine}/sessions")).json()["data"]
        assert [(session["id"], session["seq"], session["version"]) for session in listed] == [
            ("crashed", 2, 1),
            ("s", 7, 1),
        ]


async def test_ids_are_never_forgotten(database_url: str, tmp_path: Path) -> None:
    """Older ids than memory holds are found by the journal, whoever sends them again, and others'
    events are not lost over it.
    """
    limits = Limits(ids_remembered=4)
    async with hub_on(database_url, tmp_path, limits=limits) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            first = await socket.event("increment", event_id="old")
            for _ in range(130):
                await socket.event("increment")
            assert await socket.event("increment", event_id="old") == first
            answers = await asyncio.gather(
                send(client, f"{machine}/s", event_id="old"),
                send(client, f"{machine}/s", event_id="new"),
                send(client, f"{machine}/other"),
                send(client, f"{machine}/s"),
            )
            assert [answer.status_code for answer in answers] == [200] * 4
            assert answers[0].json()["seq"] == first["seq"]
    async with hub_on(database_url, tmp_path, limits=limits) as client:
        assert (await send(client, f"{machine}/s", event_id="old")).json()["seq"] == first["seq"]
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 133
        }


async def test_rejections_are_remembered_too(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(THROWS)
        first = await send(client, f"{machine}/s", "BOOM", "b")
        assert (first.status_code, first.json()["code"]) == (422, "machine_error")
        await send(client, f"{machine}/s", "INC")
    async with hub_on(database_url, tmp_path) as client:
        again = await send(client, f"{machine}/s", "BOOM", "b")
        assert (again.status_code, again.json()) == (422, first.json())
        other = await send(client, f"{machine}/s", "INC", "b")
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
        entries = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")).json()[
            "data"
        ]
        assert [(e["seq"], e["outcome"]) for e in entries] == [
            (1, "accepted"),
            (1, "rejected"),
            (2, "accepted"),
        ]


async def test_a_finished_session_still_knows_its_events(database_url: str, tmp_path: Path) -> None:
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { on: { END: "b" } }, b: { type: "final" } } });'
    )
    async with hub_on(database_url, tmp_path, limits=Limits(ids_remembered=1)) as client:
        machine = await client.deploy(source)
        for number in range(3):
            await send(client, f"{machine}/s", "NOP", f"n{number}")
        assert (await send(client, f"{machine}/s", "END", "end")).json()["seq"] == 5
        assert (await send(client, f"{machine}/s", "NOP", "n0")).json()["seq"] == 2
        assert (await send(client, f"{machine}/s", "NOP", "new")).json()[
            "code"
        ] == "session_finished"
        async with client.socket(f"{machine}/s") as socket:
            assert (await socket.event("NOP", event_id="n1"))["seq"] == 3
            assert (await socket.event("NOP", event_id="newer"))["error"][
                "code"
            ] == "session_finished"


# --- commit, then speak


async def test_nothing_is_told_before_it_is_committed(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            await socket.until("snapshot")
            commit, gate = client.hub.session_store.commit, asyncio.Event()
            asked = asyncio.Event()

            async def slow(items: Any) -> None:
                asked.set()
                await gate.wait()
                await commit(items)

            monkeypatch.setattr(client.hub.session_store, "commit", slow)
            sending = asyncio.create_task(send(client, f"{machine}/s"))
            await asked.wait()
            await socket.settle()
            assert [
                frame["type"] for frame in socket.seen if frame["type"] in ("update", "ack")
            ] == []
            assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 1
            assert not sending.done()
            gate.set()
            assert (await sending).json()["seq"] == 2
            assert (await socket.until("update"))["seq"] == 2


async def test_a_database_that_hesitates_delays(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails a few times, once having done what it was asked: nobody notices but by the clock."""
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
        failed, mend = fail_commits(client, monkeypatch, apply=lambda number: number == 1)
        sending = [
            asyncio.create_task(send(client, f"{machine}/s", event_id=f"e{n}")) for n in range(5)
        ]
        await until(lambda: failed() >= 2)
        mend()
        assert sorted([(await task).json()["seq"] for task in sending]) == [3, 4, 5, 6, 7]
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 6
        }


@pytest.mark.parametrize("done", [False, True])
async def test_a_database_that_is_away_refuses_and_loses_nothing(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    """Whether or not the last commit got through, trying again by id settles it."""
    monkeypatch.setattr(journal_module, "GIVE_UP_S", 0.3)
    monkeypatch.setattr(journal_module, "PATIENCE_S", 0.2)
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            await socket.event("increment", event_id="before")
            _, mend = fail_commits(client, monkeypatch, apply=lambda number: done and number == 1)
            refused = await send(client, f"{machine}/s", event_id="lost")
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            at_once = await socket.event("increment", event_id="early")
            assert at_once["error"]["code"] == "unavailable"
            new = await client.http.get(f"/{machine}/new")
            assert (new.status_code, new.json()["code"]) == (503, "unavailable")
            mend()
            answer = await accepted(client, f"{machine}/s", "lost")
            assert (answer.json()["seq"], answer.json()["snapshot"]["context"]) == (3, {"count": 2})
            early = await accepted(client, f"{machine}/s", "early")
            assert early.json()["seq"] == 4
            assert (await socket.event("increment", event_id="before"))["seq"] == 2
            assert socket.snapshot["context"] == {"count": 3}
        assert (await client.http.get(f"/{machine}/new")).json()["seq"] == 1


@pytest.mark.parametrize("trouble", ["PRAGMA max_page_count=1", "PRAGMA query_only=ON"])
async def test_a_full_disk_and_a_read_only_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """As SQLite itself says it: what cannot be written is refused, and nothing is lost when it can
    be again.
    """
    monkeypatch.setattr(journal_module, "GIVE_UP_S", 0.3)

    async def tell(client: Client, pragma: str) -> None:
        writer: Any = client.hub._database._writer
        await asyncio.get_running_loop().run_in_executor(
            writer._executor, lambda: writer._connection.raw.execute(pragma)
        )

    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s", event_id="a")
        await tell(client, trouble)
        big = "x" * 60_000
        answers = [
            await client.http.post(
                f"/{machine}/s",
                json={"type": "increment", "big": big},
                headers={"Idempotency-Key": f"big{n}"},
            )
            for n in range(3)
        ]
        assert answers[-1].status_code == 503, answers[-1].text
        assert (await client.http.get(f"/{machine}/s")).status_code == 200
        await tell(client, "PRAGMA max_page_count=4294967294")
        await tell(client, "PRAGMA query_only=OFF")
        for number in range(3):
            await accepted(client, f"{machine}/s", f"big{number}")
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 4
        }
        assert (await send(client, f"{machine}/s", event_id="a")).json()["seq"] == 2


async def test_a_fork_and_a_new_session_of_one_name(client: Client) -> None:
    """Whichever came second hung for ever."""
    machine = await client.deploy(COUNTER, name="namesakes")
    await send(client, f"{machine}/parent")
    for number in range(12):

        async def later(number: int = number) -> Any:
            for _ in range(number):  # a little later each time
                await client.http.get("/healthz")
            return await client.http.get(f"/{machine}/child-{number}", timeout=5)

        forked, read = await asyncio.gather(
            client.http.post(
                f"/api/v1/machines/{machine}/sessions/parent/fork",
                json={"session": f"child-{number}"},
            ),
            later(),
        )
        assert forked.status_code in (201, 409)
        assert read.status_code == 200
        assert (
            await client.http.post(
                f"/{machine}/child-{number}", json={"type": "increment"}, timeout=5
            )
        ).status_code == 200


async def test_an_old_id_is_known_whatever_else_the_request_says(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1, limits=Limits(ids_remembered=2)) as client:
        machine = await client.deploy(COUNTER)
        first = await send(client, f"{machine}/s", event_id="old", **{"If-Match": '"1"'})
        for _ in range(3):
            await send(client, f"{machine}/s", event_id=f"x{_}")
        again = await send(client, f"{machine}/s", event_id="old", **{"If-Match": '"1"'})
        assert (again.status_code, again.json()["seq"], first.json()["seq"]) == (200, 2, 2)
        assert again.headers["etag"] == '"5"'  # of the snapshot that comes along, which is today's
        assert (
            await send(client, f"{machine}/s", event_id="new", **{"If-Match": '"1"'})
        ).status_code == 412
        async with client.socket(f"{machine}/s") as socket:
            over_socket = await socket.event("increment", event_id="日本")
        over_http = await client.http.post(
            f"/{machine}/s",
            json={"type": "increment"},
            headers=[(b"Idempotency-Key", "日本".encode())],
        )
        assert over_http.json()["seq"] == over_socket["seq"]
        assert (
            await client.http.post(f"/{machine}/x%0Ay", json={"type": "increment"})
        ).status_code == 200
        assert (
            await client.http.delete(f"/api/v1/machines/{machine}/sessions/x%0Ay")
        ).status_code == 204
