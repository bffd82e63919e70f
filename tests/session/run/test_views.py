"""Who sees what and who may send what, through the front door: nothing of a secret on any path."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio

from machinehub.clock import measured_s
from machinehub.session.run.view_questions import PAUSE_S
from tests.durable import send
from tests.edge.test_connect_tokens import App, closed
from tests.support import Client, Socket, problem, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from machinehub.session.run.views import Views

SECRET = "s3cr3t_0f_ada"
HANDS = """
import { assign, emit, fromPromise, setup } from "xstate";
const machine = setup({
  actors: { work: fromPromise(async ({ input }: { input: string }) => input) },
}).createMachine({
  context: { turn: 0, hands: { ada: ["SECRET"], bob: ["bobs"] } as Record<string, string[]>, said: "" },
  initial: "playing",
  states: {
    playing: {
      on: {
        play: { actions: assign({ turn: ({ context }) => context.turn + 1 }) },
        draw: { actions: assign({ hands: ({ context, event }) => ({ ...context.hands,
          ada: [...context.hands["ada"]!, "SECRET" + event.card] }) }) },
        say: { actions: assign({ said: ({ event }) => String(event.text) }) },
        deal: { actions: [emit({ type: "dealt", to: "ada", card: "SECRET" }), emit({ type: "toast", to: "all" })] },
        fail: { actions: ({ context }) => { throw new Error("hand: " + context.hands["ada"]); } },
        log: { actions: ({ context }) => console.log("hand", context.hands["ada"]) },
        end: "over",
        SECRETstate: "SECRET",
      },
    },
    "SECRET": { on: { back: "playing" }, tags: ["SECRET"] },
    over: { type: "final" },
  },
  output: ({ context }) => context.hands,
});
export default machine;
export const view = ({ snapshot, member }: any) => {
  if (member.user === "broken") throw new Error("SECRET");
  if (member.user === "slow") for (;;);
  if (member.roles.includes("dealer")) return snapshot;
  const { turn, hands, said } = snapshot.context;
  return { value: snapshot.matches("playing") ? "playing" : "elsewhere", status: snapshot.status, tags: [],
    context: { turn, said, hand: hands[member.user] ?? [] } };
};
export const viewEmitted = ({ event, member }: any) =>
  event.to === "all" || event.to === member.user ? event : undefined;
""".replace("SECRET", SECRET)
RULES = [
    {"events": ["draw", "log"], "roles": ["dealer"]},
    {"events": ["say"], "states": ["playing"]},
]


async def new_table(hub: Client, name: str = "hands") -> App:
    project = "/api/v1/projects/default/jwt-keys"
    made = (await hub.http.post(project, json={"name": name})).json()
    machine = await hub.deploy(HANDS, name=name, private=True, access=RULES)
    return App(hub, made["kid"], made["secret"], machine)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def table(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    async with running_hub(tmp_path_factory.mktemp("views"), token="mh_own") as hub:
        yield await new_table(hub)


def hand(frame: dict[str, Any]) -> list[str]:
    return frame["snapshot"]["context"]["hand"]  # type: ignore[no-any-return]


async def test_each_sees_their_own_hand(table: App) -> None:
    ada, bob = table.token("ada"), table.token("bob")
    dealer = table.token("eve", roles=["dealer"])
    async with (
        table.socket(ada, session="hands") as one,
        table.socket(bob, session="hands") as two,
        table.socket(dealer, session="hands") as three,
    ):
        sockets = [Socket(each) for each in (one, two, three)]
        first = [await each.until("snapshot") for each in sockets]
        assert [hand(each) for each in first[:2]] == [[SECRET], ["bobs"]]
        assert first[2]["snapshot"]["context"]["hands"]["ada"] == [SECRET]
        ack = await sockets[2].event({"type": "draw", "card": "7"})
        assert (ack["outcome"], sockets[2].seq) == ("accepted", ack["seq"])
        assert (await sockets[0].until("update"))["snapshot"]["context"]["hand"][-1] == SECRET + "7"
        # What changed is not his: he is told of nothing until something is.
        assert (await sockets[1].event("play"))["outcome"] == "accepted"
        assert [each["type"] for each in sockets[1].seen].count("update") == 1
        assert sockets[1].snapshot["context"]["turn"] == 1


async def test_events_wait_for_what_was_sent_before(table: App) -> None:
    """A sender reads its own writes: the update precedes the ack, also where many are on their way."""
    async with table.socket(table.token("ada"), session="order") as connection:
        socket = Socket(connection)
        await socket.until("snapshot")
        for number in range(20):
            await socket.send_raw({"type": "event", "id": str(number), "event": {"type": "play"}})
        for number in range(20):
            ack = await socket.until("ack")
            assert ack["id"] == str(number)
            assert socket.seq >= ack["seq"]
        assert socket.snapshot["context"]["turn"] == 20


async def test_emitted_events_are_heard_by_whom_they_are_for(table: App) -> None:
    async with (
        table.socket(table.token("ada"), session="emit") as one,
        table.socket(table.token("bob"), session="emit") as two,
    ):
        ada, bob = Socket(one), Socket(two)
        for each in (ada, bob):
            await each.until("snapshot")
        await bob.event("deal")
        heard = [frame["event"]["type"] for frame in bob.seen if frame["type"] == "emitted"]
        assert heard == ["toast"]
        assert (await ada.until("emitted"))["event"] == {
            "type": "dealt",
            "to": "ada",
            "card": SECRET,
        }
    headers = {"Authorization": f"Bearer {table.token('bob')}", "Accept": "text/event-stream"}
    again = headers | {"Last-Event-ID": "1"}
    async with table.hub.http.stream("GET", f"/{table.machine}/emit", headers=again) as stream:
        text = ""
        async for chunk in stream.aiter_text():
            text += chunk
            if "toast" in text:
                break
    assert SECRET not in text


async def test_a_view_that_fails_shows_nothing(table: App) -> None:
    for user in ("broken", "slow"):
        answer = await table.get(table.token(user), session="fails")
        assert SECRET not in answer.text
        problem(answer, 422, "view_failed")
        async with table.socket(table.token(user), session="fails") as socket:
            assert await closed(socket) == 4011
    async with (
        table.socket(table.token("ada"), session="fails") as one,
        table.socket(table.token("bob"), session="fails") as two,
    ):
        for each in (one, two):  # others are not held up
            assert json.loads(await each.recv())["type"] == "snapshot"
    sent = await table.send(table.token("broken"), "play", session="fails")
    assert (sent.status_code, sent.json()["snapshot"]) == (200, None)  # it was taken, all the same
    logs = (await table.hub.http.get(f"/api/v1/machines/{table.machine}/logs")).json()["data"]
    assert any(line["text"].startswith("view_failed: ") for line in logs)


async def test_waiting_is_about_what_one_sees(table: App) -> None:
    url = f"/{table.machine}/waits/wait"
    headers = {"Authorization": f"Bearer {table.token('bob')}"}
    ask = {"condition": {"matches": SECRET}, "timeout_ms": 300}
    waiting = asyncio.create_task(table.hub.http.post(url, json=ask, headers=headers))
    conditions: list[dict[str, Any]] = [
        {"matches": "elsewhere"},
        {"matches": {"elsewhere": {}}},
    ]
    for condition in conditions:
        seen = asyncio.create_task(
            table.hub.http.post(
                url, json={"condition": condition, "timeout_ms": 20_000}, headers=headers
            )
        )
        await table.send(table.token("ada"), f"{SECRET}state", session="waits")
        if condition["matches"] == "elsewhere":
            assert (await seen).json()["snapshot"]["value"] == "elsewhere"
        else:
            seen.cancel()
    problem(await waiting, 408, "wait_timeout")


async def test_an_operator_reads_everything_and_it_is_noted(table: App) -> None:
    await table.send(table.token("bob"), "play", session="operated")
    path = f"/api/v1/machines/{table.machine}/sessions/operated"
    assert SECRET in (await table.hub.http.get(path)).text
    noted = (await table.hub.http.get("/api/v1/audit?limit=1")).json()["data"][0]["what"]
    assert noted.startswith("read session operated of hands")
    # By the machine's own URL they are a member like any other.
    assert SECRET not in (await table.hub.http.get(f"/{table.machine}/operated")).text


async def test_a_definition_does_not_say_what_sessions_begin_with(table: App) -> None:
    headers = {"Authorization": f"Bearer {table.token('bob')}", "Accept": "application/json"}
    shown = (await table.hub.http.get(f"/{table.machine}", headers=headers)).json()
    assert "context" not in shown["definition"]
    assert shown["definition"]["view"] is True
    assert shown["definition"]["rules"] == RULES


async def test_nobody_receives_a_byte_of_what_is_not_theirs(table: App) -> None:
    """Events of all kinds, on all paths, at once: all that bob's connections ever received is
    searched.
    """
    chance = random.Random(7)
    received: list[str] = []
    bob, eve = table.token("bob"), table.token("eve", roles=["dealer"])
    headers = {"Authorization": f"Bearer {bob}"}

    async def listen() -> None:
        async with table.socket(bob, session="fuzz") as socket:
            while True:
                received.append(str(await socket.recv()))

    async def stream() -> None:
        accepts = headers | {"Accept": "text/event-stream", "Last-Event-ID": "0"}
        async with table.hub.http.stream("GET", f"/{table.machine}/fuzz", headers=accepts) as read:
            chunks = read.aiter_text()
            while True:
                received.append(await anext(chunks))

    async def ask(method: str, path: str, **more: Any) -> None:
        answer = await table.hub.http.request(
            method, f"/{table.machine}/fuzz{path}", headers=headers | more.pop("also", {}), **more
        )
        received.append(f"{answer.headers} {answer.text}")

    async def poke() -> None:
        kinds = ["play", "deal", "fail", "log", "draw", "say", "back", "nothing"]
        for number in range(60):
            kind = chance.choice(kinds)
            event = {"type": kind, "card": str(number), "text": "x"}
            await table.hub.http.post(
                f"/{table.machine}/fuzz", json=event, headers={"Authorization": f"Bearer {eve}"}
            )
            lot = chance.random()
            if lot < 0.3:
                key = {"also": {"Idempotency-Key": f"{kind}-{number % 2}"}}
                await ask("POST", "", json=event, **key)
            elif lot < 0.5:
                await ask("GET", chance.choice(["", "?at=1", f"?at={1 + number // 4}", "?at=999"]))
            elif lot < 0.6:
                body = {"condition": {"matches": "playing"}, "timeout_ms": 50}
                await ask("POST", "/wait", json=body)
            elif lot < 0.7:
                await ask("GET", "/presence")
            elif lot < 0.8:
                await ask("PUT", "", json={"input": 1})
            else:
                await ask("GET", "", also={"Accept": "text/html"})

    listening = [asyncio.create_task(each()) for each in (listen, listen, stream)]
    await until(lambda: len(received) >= 3)
    await asyncio.gather(*(poke() for _ in range(3)))
    await table.send(eve, "end", session="fuzz")
    await ask("POST", "", json={"type": "play"})
    async with table.socket(bob, session="fuzz") as last:
        received.append(str(await last.recv()))
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    assert [each for each in received if SECRET in each] == []
    whole = " ".join(received)
    assert all(each in whole for each in ("machine_error", "toast", "bobs", "forbidden"))


async def test_what_happened_is_told_after_a_kill_of_the_worker(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as hub:
        table = await new_table(hub)
        async with table.socket(table.token("ada")) as connection:
            socket = Socket(connection)
            await socket.until("snapshot")
            for _ in range(3):
                hub.hub.pool.workers[0].kill("a test")
                assert (await socket.event("play"))["outcome"] == "accepted"
            assert socket.snapshot["context"]["turn"] == 3


async def test_a_session_with_a_view_is_the_same_after_a_restart(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        table = await new_table(hub)
        await table.send(table.token("eve", roles=["dealer"]), "draw")
    async with running_hub(tmp_path) as hub:
        table.hub = hub
        answer = await table.get(table.token("bob"))
        assert answer.json()["snapshot"]["context"]["hand"] == ["bobs"]
        problem(await table.send(table.token("bob"), "draw"), 403, "forbidden")


async def test_sessions_with_views_leave_memory(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        table = await new_table(hub)
        await table.get(table.token("ada"), session="a")
        async with table.socket(table.token("ada"), session="a") as socket:
            await socket.recv()
        await hub.http.delete(f"/api/v1/machines/{table.machine}/sessions/a")
        views: Views = hub.hub.sessions.views
        await until(lambda: not views._galleries)


async def test_many_members_with_many_views(tmp_path: Path) -> None:
    """Each gets their own, and everybody the newest, however many turns come while views are
    made.
    """
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(
            "import { assign, createMachine } from 'xstate';"
            "export default createMachine({ context: { n: 0 }, on: { inc: {"
            " actions: assign({ n: ({ context }) => context.n + 1 }) } } });"
            "export const view = ({ snapshot, member }) => ({ n: snapshot.context.n, id: member.id });"
        )
        sockets: list[Socket] = []
        async with asyncio.TaskGroup() as group:
            done = asyncio.Event()

            async def one(number: int) -> None:
                key = f"?client=a-key-that-is-long-{number}"
                async with hub.socket(f"{machine}/s{key}") as socket:
                    first = await socket.until("snapshot")
                    socket.id = first["connection"]["id"]  # type: ignore[attr-defined]
                    sockets.append(socket)
                    while socket.snapshot["n"] < 30:
                        await socket.until("update")
                    await done.wait()

            for number in range(40):
                group.create_task(one(number))
            await until(lambda: len(sockets) == 40)
            for _ in range(30):
                await send(hub, f"{machine}/s", "inc")
            done.set()
        assert {each.snapshot["id"] for each in sockets} == {each.id for each in sockets}  # type: ignore[attr-defined]
        assert len({each.snapshot["id"] for each in sockets}) == 40


async def test_who_hears_an_emitted_event_is_decided_by_its_own_moment(tmp_path: Path) -> None:
    """However many turns gather while views are made, and for who comes back later."""
    source = """
import { assign, createMachine, emit } from "xstate";
export default createMachine({
  context: { owner: "" },
  on: { take: { actions: [assign({ owner: ({ event }) => event.by }), emit(({ event }) => ({ type: "card", of: event.by }))] } },
});
export const view = ({ snapshot }) => ({ status: snapshot.status });
export const viewEmitted = ({ event, snapshot, member }) =>
  snapshot.context.owner === member.user ? event : undefined;
"""
    async with running_hub(tmp_path) as hub:
        made = (await hub.http.post("/api/v1/projects/default/jwt-keys", json={"name": "k"})).json()
        app = App(hub, made["kid"], made["secret"], await hub.deploy(source))
        async with app.socket(app.token("ada")) as one, app.socket(app.token("bob")) as two:
            ada, bob = Socket(one), Socket(two)
            for each in (ada, bob):
                await each.until("snapshot")
            for number in range(8):
                event = {"type": "take", "by": "ada" if number % 2 else "bob"}
                await ada.send_raw({"type": "event", "id": str(number), "event": event})
            for _ in range(8):
                await ada.until("ack")
            while len([each for each in bob.seen if each["type"] == "emitted"]) < 4:
                await bob.receive()
            await bob.settle()
            for socket, name in ((ada, "ada"), (bob, "bob")):
                cards = [each["event"]["of"] for each in socket.seen if each["type"] == "emitted"]
                assert cards == [name] * 4
        accepts = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
        headers = accepts | {"Authorization": f"Bearer {app.token('bob')}"}
        text = ""
        async with hub.http.stream("GET", f"/{app.machine}/s", headers=headers) as stream:
            async for chunk in stream.aiter_text():
                text += chunk
                if text.count('"of"') == 4:
                    break
            assert '"of":"ada"' not in text  # she may be among those who are there


async def test_many_large_events_find_their_members(tmp_path: Path) -> None:
    source = """
import { createMachine, emit } from "xstate";
export default createMachine({ on: { big: { actions: emit({ type: "b", text: '"'.repeat(100_000) }) } } });
export const view = ({ snapshot }) => snapshot;
export const viewEmitted = ({ event }) => event;
"""
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(source)
        async with hub.socket(f"{machine}/s") as socket:
            await socket.until("snapshot")
            for number in range(12):
                event = {"type": "big"}
                await socket.send_raw({"type": "event", "id": str(number), "event": event})
            for _ in range(12):
                await socket.until("emitted")


async def test_a_copy_is_answered_behind_the_update(table: App) -> None:
    async with table.socket(table.token("ada"), session="copies") as connection:
        socket = Socket(connection)
        await socket.until("snapshot")
        for number in range(10):
            for _ in range(3):
                frame = {"type": "event", "id": str(number), "event": {"type": "play"}}
                await socket.send_raw(frame)
        for _ in range(30):
            ack = await socket.until("ack")
            assert socket.seq >= ack["seq"]


async def test_a_view_may_be_anything(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        for number, shown in enumerate(("5", "null", "[1]", "'x'", "undefined")):
            source = (
                "import { createMachine } from 'xstate';"
                f"export default createMachine({{}}); export const view = () => {shown};"
            )
            machine = await hub.deploy(source, name=f"any-{number}")
            body = {"condition": "done", "timeout_ms": 20}
            problem(await hub.http.post(f"/{machine}/s/wait", json=body), 408, "wait_timeout")
            async with hub.socket(f"{machine}/s") as socket:
                assert (await socket.until("snapshot"))["snapshot"] in (5, None, [1], "x")


async def test_what_one_sees_is_kept_by_no_cache(table: App) -> None:
    one = await table.get(table.token("ada"), session="cached")
    assert one.headers["cache-control"] == "private, no-store"
    assert "Authorization" in one.headers["vary"]
    again = {"If-None-Match": one.headers["etag"]}
    assert (await table.get(table.token("bob"), session="cached", **again)).status_code == 200


async def test_a_session_of_a_version_without_a_view_leaves_memory(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(HANDS.split("export const view")[0], name="views")
        await hub.http.get(f"/{machine}/s")
    async with running_hub(tmp_path) as hub:
        await hub.deploy(HANDS, name="views")
        async with hub.socket(f"{machine}/s") as socket:
            assert "hands" in (await socket.until("snapshot"))["snapshot"]["context"]
        await hub.http.delete(f"/api/v1/machines/{machine}/sessions/s")
        await until(lambda: not hub.hub.sessions.views._galleries)


async def test_a_looping_view_leaves_its_neighbours_their_time(tmp_path: Path) -> None:
    """Of one worker, whose CPU is counted rather than anybody's time."""
    async with running_hub(tmp_path, workers=1) as hub:
        loops = await hub.deploy(
            "import { createMachine } from 'xstate'; export default createMachine({});"
            "export const view = () => { for (;;); };",
            name="loops",
        )
        questions = hub.hub.sessions.views._questions
        asked: list[float] = []
        answer = questions._answer

        async def counted(*arguments: Any) -> bytes:
            asked.append(measured_s())
            return await answer(*arguments)

        questions._answer = counted  # type: ignore[method-assign, assignment]
        await asyncio.gather(*(hub.http.get(f"/{loops}/s{number}") for number in range(6)))
        # Two at once, and a pause behind each.
        gaps = [later - sooner for sooner, later in zip(asked, asked[2:], strict=False)]
        assert len(asked) == 6
        assert min(gaps) >= PAUSE_S * 0.9


# --- access


async def test_a_forged_sender_does_not_reach_access(tmp_path: Path) -> None:
    source = (
        "import { createMachine } from 'xstate'; export default createMachine({});"
        "export const access = ({ event }) => event.sender.roles.includes('admin');"
    )
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(source)
        forged = {"type": "hit", "sender": {"id": "x", "roles": ["admin"]}}
        problem(await hub.http.post(f"/{machine}/s", json=forged), 403, "forbidden")


async def test_access_is_decided_when_the_turn_comes(tmp_path: Path) -> None:
    """Eight events on their way, of which one changes the state: what comes behind it is decided on
    that, although it was sent before.
    """
    source = """
import { assign, createMachine } from "xstate";
export default createMachine({
  context: { edits: 0 }, initial: "draft",
  states: {
    draft: { on: { edit: { actions: assign({ edits: ({ context }) => context.edits + 1 }) }, submit: "review" } },
    review: { on: { edit: { actions: assign({ edits: () => 99 }) } } },
  },
});
ACCESS
"""
    functions = "export const access = ({ state, event }: any) => event.type !== 'edit' || state.matches('draft');"
    async with running_hub(tmp_path) as hub:
        table = await hub.deploy(
            source.replace("ACCESS", ""),
            name="rules",
            access=[{"events": ["edit"], "states": ["draft"]}],
        )
        code = await hub.deploy(source.replace("ACCESS", functions), name="code")
        for machine in (table, code):
            async with hub.socket(f"{machine}/s") as socket:
                await socket.until("snapshot")
                types = ["edit"] * 3 + ["submit"] + ["edit"] * 4
                for number, type_ in enumerate(types):
                    frame = {"type": "event", "id": str(number), "event": {"type": type_}}
                    await socket.send_raw(frame)
                acks = [await socket.until("ack") for _ in types]
                assert [ack["outcome"] for ack in acks] == ["accepted"] * 4 + ["rejected"] * 4
                assert {ack["error"]["code"] for ack in acks[4:]} == {"forbidden"}
                assert socket.snapshot["context"]["edits"] == 3
                assert acks[-1]["seq"] == 5
            answer = await hub.http.post(f"/{machine}/s", json={"type": "edit"})
            problem(answer, 403, "forbidden")
            journal = await hub.http.get(f"/api/v1/machines/{machine}/sessions/s/journal?limit=50")
            outcomes = [each["outcome"] for each in journal.json()["data"]]
            assert outcomes.count("accepted") == 5
            replay = await hub.http.post(f"/api/v1/machines/{machine}/sessions/s/replay")
            assert replay.json()["verified"] is True


async def test_a_refused_event_is_refused_again_under_its_id(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(HANDS, access=RULES)
        headers = {"Idempotency-Key": "once"}
        for _ in range(2):
            answer = await hub.http.post(f"/{machine}/s", json={"type": "draw"}, headers=headers)
            assert problem(answer, 403, "forbidden")["seq"] == 1


@pytest.mark.parametrize(
    "access",
    [
        [{"events": []}],
        [{"events": "edit"}],
        [{"events": ["edit"], "role": ["x"]}],
        [{"events": ["edit"], "sub": ""}],
        [{"states": ["a"]}],
        [{"events": ["a"]}] * 300,
        {"events": ["a"]},
    ],
)
async def test_what_is_no_table(client: Client, access: Any) -> None:
    answer = await client.http.post(
        "/api/v1/deployments",
        json={"name": "no-table", "entry": "m.ts", "files": {"m.ts": HANDS}, "access": access},
    )
    problem(answer, 400, "invalid_body")


async def test_exports_that_are_no_functions_are_said(client: Client) -> None:
    source = (
        HANDS.split("export const view")[0]
        + "export const view = 1; export const viewEmitted = () => 1;"
    )
    answer = await client.http.post(
        "/api/v1/deployments",
        json={"name": "no-view", "entry": "m.ts", "files": {"m.ts": source}},
    )
    warnings = " ".join(answer.json()["warnings"])
    assert "exported as view is no function" in warnings
    assert "viewEmitted" in warnings
    assert isinstance(answer, httpx.Response)
