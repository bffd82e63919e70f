"""Sessions outlive clients, workers, the hub; what was acknowledged is there, what was not can be
settled by its id. On real databases.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import zstandard

from machinehub.clock import ManualClock
from machinehub.errors import Unavailable
from machinehub.ids import Digest, MachineId
from machinehub.limits import Limits
from machinehub.session.run import journal as journal_module
from machinehub.store.store import pack_files
from sandbox.forge import forge_base, forge_image, load_guest
from sandbox.worker import GUEST
from tests.databases import new_database
from tests.durable import TIMERS, asleep, count, hub_on, send
from tests.support import COUNTER, Client, running_hub
from tests.test_sandbox import Sandbox, another_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

THROWS = """
import { assign, createMachine } from "xstate";
export default createMachine({ context: { n: 0 }, on: { INC: { actions: assign({ n: ({ context }) => context.n + 1 }) }, BOOM: { actions: [assign({ n: 99 }), () => { throw new Error("boom"); }] } } });
"""


def fail_commits(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    *,
    apply: Callable[[int], bool] = lambda _: False,
) -> Callable[[], None]:
    """Commits are answered `unavailable` from now on, done or not as `apply(number)` says; the
    answer ends that.
    """
    store, commit, count = client.hub.session_store, client.hub.session_store.commit, [0]

    async def failing(items: Any) -> None:
        count[0] += 1
        if apply(count[0]):
            await commit(items)
        raise Unavailable("unavailable", "the database is away")

    monkeypatch.setattr(store, "commit", failing)
    return lambda: monkeypatch.setattr(store, "commit", commit)


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
        again = await send(client, f"{machine}/s", "INC", "b")
        assert (again.status_code, again.json()) == (422, first.json())
        entries = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")).json()[
            "data"
        ]
        assert [(e["seq"], e["outcome"]) for e in entries] == [
            (1, "accepted"),
            (1, "rejected"),
            (2, "accepted"),
        ]


async def test_a_finished_session_still_knows_its_events(database_url: str, tmp_path: Path) -> None:
    source = 'import { createMachine } from "xstate"; export default createMachine({ initial: "a", states: { a: { on: { END: "b" } }, b: { type: "final" } } });'
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

            async def slow(items: Any) -> None:
                await gate.wait()
                await commit(items)

            monkeypatch.setattr(client.hub.session_store, "commit", slow)
            sending = asyncio.create_task(send(client, f"{machine}/s"))
            await asyncio.sleep(0.3)
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
        mended = fail_commits(client, monkeypatch, apply=lambda number: number == 1)
        sending = [
            asyncio.create_task(send(client, f"{machine}/s", event_id=f"e{n}")) for n in range(5)
        ]
        await asyncio.sleep(0.3)
        mended()
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
            mended = fail_commits(client, monkeypatch, apply=lambda number: done and number == 1)
            refused = await send(client, f"{machine}/s", event_id="lost")
            assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
            at_once = await socket.event("increment", event_id="early")
            assert at_once["error"]["code"] == "unavailable"
            new = await client.http.get(f"/{machine}/new")
            assert (new.status_code, new.json()["code"]) == (503, "unavailable")
            mended()
            for _ in range(100):
                answer = await send(client, f"{machine}/s", event_id="lost")
                if answer.status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert (answer.json()["seq"], answer.json()["snapshot"]["context"]) == (3, {"count": 2})
            while "error" in (early := await socket.event("increment", event_id="early")):
                await asyncio.sleep(0.05)
            assert early["seq"] == 4
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
            for _ in range(100):
                if (
                    answer := await send(client, f"{machine}/s", event_id=f"big{number}")
                ).status_code == 200:
                    break
                await asyncio.sleep(0.05)
            assert answer.status_code == 200
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 4
        }
        assert (await send(client, f"{machine}/s", event_id="a")).json()["seq"] == 2


async def test_a_second_hub_on_one_postgres_is_refused(postgres: str, tmp_path: Path) -> None:
    database_url = await new_database(postgres)
    async with hub_on(database_url, tmp_path / "a") as first:
        machine = await first.deploy(COUNTER)
        with pytest.raises(Unavailable, match="another hub uses this database"):
            async with hub_on(database_url, tmp_path / "b"):
                pass
        assert (await send(first, f"{machine}/s")).status_code == 200
    async with hub_on(database_url, tmp_path / "b") as second:
        assert (await send(second, f"{machine}/s")).json()["seq"] == 3


async def test_sqlite_is_one_hubs(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        with pytest.raises(Unavailable, match="another hub"):
            async with running_hub(tmp_path, workers=1):
                pass
        assert (await client.http.get("/readyz")).status_code == 200
        (tmp_path / "hub.db").rename(tmp_path / "moved.db")
        gone = await client.http.get("/readyz")
        assert (gone.status_code, gone.json()["database"]) == (503, False)
        (tmp_path / "moved.db").rename(tmp_path / "hub.db")
        assert (await client.http.get("/readyz")).status_code == 200


async def test_a_fork_and_a_new_session_of_one_name(client: Client) -> None:
    """Whichever came second hung for ever."""
    machine = await client.deploy(COUNTER, name="namesakes")
    await send(client, f"{machine}/parent")
    for number in range(12):

        async def later(number: int = number) -> Any:
            await asyncio.sleep(number * 0.001)
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


async def test_nothing_of_a_deleted_machine_goes_on(tmp_path: Path) -> None:
    """Sessions that woke, or were forked, while their machine was deleted ran on where nobody saw
    them.
    """
    source = 'import { createMachine } from "xstate"; export default createMachine({ initial: "a", states: { a: { after: { 50: "b" } }, b: { after: { 50: "a" } } } });'
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(source)
        for number in range(20):
            await client.http.get(f"/{machine}/s{number}")
        forking = [
            asyncio.create_task(
                client.http.post(
                    f"/api/v1/machines/{machine}/sessions/s0/fork", json={"session": f"f{n}"}
                )
            )
            for n in range(8)
        ]
        client.hub.sessions.housekeeper.hibernate()
        await asyncio.sleep(0.03)
        assert (await client.http.delete(f"/api/v1/machines/{machine}")).status_code == 204
        for task in forking:
            await task
        await asyncio.sleep(0.5)
        assert [
            await count(client, table) for table in ("sessions", "journal", "checkpoints", "timers")
        ] == [0, 0, 0, 0]
        assert len(client.hub.sessions.registry) == 0


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


async def test_events_behind_the_end_do_not_move_the_seq(client: Client) -> None:
    source = 'import { createMachine } from "xstate"; export default createMachine({ initial: "a", states: { a: { on: { END: "b" } }, b: { type: "final" } } });'
    machine = await client.deploy(source, name="ends")
    async with client.socket(f"{machine}/s") as socket:
        for number, event in enumerate(["NOP", "END", "NOP", "NOP", "NOP"]):
            await socket.send_raw({"type": "event", "id": f"e{number}", "event": {"type": event}})
        acks = [await socket.until("ack") for _ in range(5)]
    assert [(ack["seq"], ack.get("error", {}).get("code")) for ack in acks] == [
        (2, None),
        (3, None),
        *[(3, "session_finished")] * 3,
    ]
    assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 3
    assert (await client.http.post(f"/api/v1/machines/{machine}/sessions/s/replay")).json()[
        "verified"
    ]


# --- what an error does


async def test_a_machine_may_stop_on_errors(client: Client) -> None:
    stops = await client.deploy(THROWS, name="stops", machine={"on_error": "stop"})
    undoes = await client.deploy(THROWS, name="undoes")
    for machine in (stops, undoes):
        await send(client, f"{machine}/s", "INC")
    undone = await send(client, f"{undoes}/s", "BOOM")
    assert (undone.status_code, undone.json()["code"]) == (422, "machine_error")
    assert (await send(client, f"{undoes}/s", "INC")).json()["snapshot"]["context"] == {"n": 2}
    stopped = (await send(client, f"{stops}/s", "BOOM")).json()
    assert stopped["snapshot"]["status"] == "error"
    assert stopped["snapshot"]["error"] == {"name": "Error", "message": "boom"}
    assert (await send(client, f"{stops}/s", "INC")).json()["code"] == "session_finished"
    assert (await client.http.get(f"/{stops}")).json()["definition"]["on_error"] == "stop"
    bad = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "bad",
            "entry": "a.ts",
            "files": {"a.ts": THROWS},
            "machine": {"on_error": "explode"},
        },
    )
    assert (bad.status_code, bad.json()["code"]) == (400, "invalid_body")
    assert (await client.deploy(THROWS, name="stops", machine={"on_error": "stop"})) == stops
    versions = (await client.http.get("/api/v1/machines/stops/versions")).json()["data"]
    assert len(versions) == 1


# --- pinned


async def test_a_session_stays_on_its_version(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/old")
        await client.deploy(COUNTER.replace("count + 1", "count + 10"))
        await asleep(client, machine, "old")
    async with hub_on(database_url, tmp_path) as client:
        old = (await send(client, f"{machine}/old")).json()
        new = (await send(client, f"{machine}/new")).json()
        assert (old["snapshot"]["context"], new["snapshot"]["context"]) == (
            {"count": 2},
            {"count": 10},
        )
        listed = (await client.http.get(f"/api/v1/machines/{machine}/sessions")).json()["data"]
        assert [(session["id"], session["version"]) for session in listed] == [
            ("new", 2),
            ("old", 1),
        ]


async def test_a_session_stays_on_its_engine(tmp_path: Path) -> None:
    """A hub that was given a new engine still runs what was frozen under the old one; without it,
    it says so.
    """
    older = another_engine((GUEST / "engine.wasm").read_bytes())
    sandbox = Sandbox()
    base = forge_base(
        sandbox.engine,
        older,
        (GUEST / "genesis.wasm").read_bytes(),
        [(GUEST / name).read_text() for name in ("prelude.js", "polyfills.js")],
        memory_bytes_max=2**24,
    )
    guest = load_guest(sandbox.engine, older, base)
    script = 'module.exports={default:require("xstate").createMachine({context:{n:0},on:{INC:{actions:require("xstate").assign({n:({context})=>context.n+1})}}})};'
    wasm, definition, _ = forge_image(
        sandbox.engine, guest, script, source_map=None, cpu_s=2, memory_bytes_max=2**24
    )
    async with running_hub(tmp_path, workers=1) as client:
        await client.hub.store.deploy(
            new_id=MachineId("Older1"),
            name="older",
            digest=Digest("o" * 32),
            entry="m.ts",
            files=pack_files({"m.ts": ""}),
            message="",
            activate=True,
            now_ms=1,
            image=zstandard.compress(wasm),
            engine=guest.engine_digest,
            definition=msgspec.json.encode(definition),
        )
        answer = await send(client, "Older1/s", "INC")
        assert (answer.status_code, answer.json()["code"]) == (503, "image_damaged")
        await client.hub.store.add_engine(guest.engine_digest, zstandard.compress(older))
        assert (await send(client, "Older1/s", "INC")).json()["snapshot"]["context"] == {"n": 1}
        newer = await client.deploy(COUNTER)
        assert (await send(client, f"{newer}/s")).json()["snapshot"]["context"] == {"count": 1}
        assert await count(client, "engines") == 2
    async with running_hub(tmp_path, workers=1) as client:
        assert (await send(client, "Older1/s", "INC")).json()["snapshot"]["context"] == {"n": 2}


# --- deleting, expiring


async def test_deleting_a_session_deletes_all_of_it(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(TIMERS)
        for session in ("asleep", "awake"):
            await send(client, f"{machine}/{session}", "GO", "go")
        await asleep(client, machine, "asleep")
        async with client.socket(f"{machine}/awake"):
            for session in ("asleep", "awake"):
                assert (
                    await client.http.delete(f"/api/v1/machines/{machine}/sessions/{session}")
                ).status_code == 204
                assert (
                    await client.http.delete(f"/api/v1/machines/{machine}/sessions/{session}")
                ).status_code == 404
                assert (
                    await client.http.get(f"/api/v1/machines/{machine}/sessions/{session}")
                ).status_code == 404
        assert [
            await count(client, table) for table in ("sessions", "journal", "checkpoints", "timers")
        ] == [0, 0, 0, 0]
        assert (await send(client, f"{machine}/awake", "GO", "go")).json()["seq"] == 2
        assert (await client.http.delete(f"/api/v1/machines/{machine}")).status_code == 204
        assert await count(client, "journal") == 0


async def test_finished_sessions_expire(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = 'import { createMachine } from "xstate"; export default createMachine({ initial: "a", states: { a: { on: { END: "b" } }, b: { type: "final" } } });'
    async with hub_on(database_url, tmp_path, clock=clock, expire_finished_s=60) as client:
        machine = await client.deploy(source)
        await send(client, f"{machine}/over", "END")
        await send(client, f"{machine}/going", "NOP")
        clock.move_to(clock.now_ms() + 59_000)
        assert await client.hub.sessions.housekeeper.expire() == 0
        clock.move_to(clock.now_ms() + 2_000)
        assert await client.hub.sessions.housekeeper.expire() == 1
        listed = (await client.http.get(f"/api/v1/machines/{machine}/sessions")).json()["data"]
        assert [session["id"] for session in listed] == ["going"]
