"""A hub that carries out what machines ask: after the commit, at least once under one key, with the
answer as an input.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import pytest

from tests.durable import asleep, hub_on
from tests.effects.world import World, world
from tests.support import Client, problem, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FETCHER = """
import { assign, fromPromise, setup } from "xstate";
// Fetches what an event says, and keeps what came of it.
const call = fromPromise(async ({ input, signal }) => {
  const answer = await fetch(input.url, { ...input.init, signal });
  return { status: answer.status, text: await answer.text(), headers: [...answer.headers] };
});
export default setup({ actors: { call } }).createMachine({
  context: { got: [], why: [] },
  initial: "idle",
  states: {
    idle: { on: { fetch: "busy" } },
    busy: {
      invoke: {
        src: "call", input: ({ event }) => event,
        onDone: { target: "idle", actions: assign({ got: ({ context, event }) => [...context.got, event.output] }) },
        onError: { target: "idle", actions: assign({ why: ({ context, event }) => [...context.why, `${event.error.name}: ${event.error.message}`] }) },
      },
      on: { stop: "idle" },
    },
  },
});
"""


@contextlib.asynccontextmanager
async def fetching(
    database_url: str, folder: Path, there: World, **settings: Any
) -> AsyncIterator[Client]:
    settings = {"egress_networks": "127.0.0.0/8"} | settings
    async with hub_on(database_url, folder, **settings) as client:
        yield client


async def deployed(
    client: Client,
    source: str = FETCHER,
    *,
    name: str = "fetcher",
    **egress: Any,
) -> str:
    rules = {"allow": ["127.0.0.1"], "per_second": 1000} | egress
    return await client.deploy(source, name=name, egress=rules)


async def send(client: Client, machine: str, session: str, event: dict[str, Any]) -> None:
    answer = await client.http.post(f"/{machine}/{session}", json=event)
    assert answer.status_code == 200, answer.text


async def context(client: Client, machine: str, session: str) -> dict[str, Any]:
    found: dict[str, Any] = (
        await client.http.get(f"/{machine}/{session}", headers={"Accept": "application/json"})
    ).json()["snapshot"]["context"]
    return found


async def came(client: Client, machine: str, session: str, count: int = 1) -> dict[str, Any]:
    """The session's context, once so much came of what it asked."""
    found: dict[str, Any] = {}

    async def is_there() -> bool:
        nonlocal found
        found = await context(client, machine, session)
        return len(found["got"]) + len(found["why"]) >= count

    await until(is_there)
    return found


def came_to(there: World, count: int) -> bool:
    return len(there.seen) == count


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'hub.db'}"


async def effects(client: Client, machine: str, session: str) -> list[dict[str, Any]]:
    """What the session asked, the newest first."""
    answer = await client.http.get(f"/api/v1/machines/{machine}/sessions/{session}/effects")
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["data"]
    return found


async def test_a_request_is_made_and_answered(database_url: str, tmp_path: Path) -> None:
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client)
        init = {"method": "POST", "body": "hi", "headers": {"X-Mine": "yes"}}
        await send(
            client, machine, "s", {"type": "fetch", "url": there.url + "/echo", "init": init}
        )
        [got] = (await came(client, machine, "s"))["got"]
        assert got["status"] == 200
        [seen] = there.seen
        assert (seen.method, seen.body) == ("POST", b"hi")
        assert seen.header("x-mine") == "yes"
        assert (seen.header("idempotency-key") or "").startswith("mh-")
        assert seen.header("host") == f"127.0.0.1:{there.port}"


async def test_a_session_sleeps_while_it_waits(database_url: str, tmp_path: Path) -> None:
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        await asleep(client, machine, "s")
        assert client.find(machine, "s") is None
        there.let_go.set()
        [got] = (await came(client, machine, "s"))["got"]
        assert got["text"] == "waited"


# --- tries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "init", "tries", "status"),
    [
        ("/status/503/2", {}, 3, 200),
        ("/status/500/1", {"method": "PUT"}, 2, 200),
        ("/status/429/2", {"method": "POST"}, 3, 200),
        ("/status/500", {"method": "POST"}, 1, 500),
        ("/status/404", {}, 1, 404),
        ("/status/502", {}, 3, 502),
    ],
)
async def test_what_may_pass_is_tried_again(
    tmp_path: Path, path: str, init: dict[str, str], tries: int, status: int
) -> None:
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, tries=3)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + path, "init": init})
        [got] = (await came(client, machine, "s"))["got"]
        assert (got["status"], len(there.seen)) == (status, tries)
        assert len({each.header("idempotency-key") for each in there.seen}) == 1
        [effect] = await effects(client, machine, "s")
        assert (effect["outcome"], effect["status"], effect["tries"]) == ("answered", status, tries)


async def test_who_is_to_come_back_too_late_is_answered(tmp_path: Path) -> None:
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/later/3600"})
        [got] = (await came(client, machine, "s"))["got"]
        assert (got["status"], len(there.seen)) == (429, 1)


async def test_nobody_answers(tmp_path: Path) -> None:
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, tries=2)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/reset"})
        [why] = (await came(client, machine, "s"))["why"]
        assert why.startswith("TypeError: the request failed")
        assert len(there.seen) == 2
        [effect] = await effects(client, machine, "s")
        assert (effect["outcome"], effect["tries"]) == ("egress_failed", 2)


async def test_an_author_may_say_the_key(tmp_path: Path) -> None:
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client)
        init = {"headers": {"idempotency-key": "mine"}}
        await send(
            client, machine, "s", {"type": "fetch", "url": there.url + "/echo", "init": init}
        )
        await came(client, machine, "s")
        assert there.seen[0].header("idempotency-key") == "mine"


# --- what waits -----------------------------------------------------------------------------------


async def test_who_waits_no_more_is_not_asked_for(tmp_path: Path) -> None:
    """The machine leaves the state: the request is ended, and its answer comes to nobody."""
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        await send(client, machine, "s", {"type": "stop"})
        await until(lambda: not client.hub.broker.known)
        [effect] = await effects(client, machine, "s")
        assert (effect["state"], effect["outcome"]) == ("ended", "withdrawn")
        assert await context(client, machine, "s") == {"got": [], "why": []}


async def test_as_many_at_once_as_the_machine_may(tmp_path: Path) -> None:
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, in_flight=3)
        for number in range(8):
            name = f"s{number}"
            await send(client, machine, name, {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way == 3)
        there.let_go.set()
        for number in range(8):
            await came(client, machine, f"s{number}")
        assert there.most_under_way == 3


async def test_a_request_is_made_after_a_restart(database_url: str, tmp_path: Path) -> None:
    """The hub ends while it waits: the next one asks again, under the same key."""
    async with world() as there:
        async with fetching(database_url, tmp_path, there) as client:
            machine = await deployed(client)
            await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
            await until(lambda: there.under_way)
        there.let_go.set()
        async with fetching(database_url, tmp_path, there) as client:
            [got] = (await came(client, machine, "s"))["got"]
            assert got["text"] == "waited"
        assert len(there.seen) == 2
        assert len({each.header("idempotency-key") for each in there.seen}) == 1


# --- history, forks, by hand ----------------------------------------------------------------------


async def test_replays_ask_nobody(database_url: str, tmp_path: Path) -> None:
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/echo"})
        await came(client, machine, "s")
        at = f"/api/v1/machines/{machine}/sessions/s"
        journal = (await client.http.get(at + "/journal")).json()["data"]
        assert [each["kind"] for each in journal] == ["start", "event", "answer"]
        assert journal[2]["effect"] == 1
        assert journal[2]["answer"]["status"] == 200
        assert journal[2]["cause"].startswith("xstate.done.actor")
        assert (await client.http.post(at + "/replay")).json()["verified"]
        then = await client.http.get(f"/{machine}/s?at=2", headers={"Accept": "application/json"})
        assert then.json()["snapshot"]["value"] == "busy"
        assert len(there.seen) == 1


@pytest.mark.parametrize(("keep", "asked"), [("drop", 1), ("keep", 2)])
async def test_a_fork_asks_only_if_it_is_asked_to(
    database_url: str, tmp_path: Path, keep: str, asked: int
) -> None:
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        at = f"/api/v1/machines/{machine}/sessions/s/fork"
        answer = await client.http.post(at, json={"session": "f", "effects": keep})
        assert answer.status_code == 201, answer.text
        if keep == "keep":
            await until(lambda: there.under_way == 2)
        [effect] = await effects(client, machine, "f")
        assert effect["state"] == ("held" if keep == "drop" else "pending")
        there.let_go.set()
        await came(client, machine, "s")
        if keep == "drop":
            by_hand = f"/api/v1/machines/{machine}/sessions/f/effects/1/answer"
            assert (await client.http.post(by_hand, json={"text": "mine"})).status_code == 204
        [got] = (await came(client, machine, "f"))["got"]
        assert got["text"] == ("mine" if keep == "drop" else "waited")
        assert len(there.seen) == asked
        assert len({each.header("idempotency-key") for each in there.seen}) == asked


async def test_a_request_is_cancelled_or_answered_by_hand(
    database_url: str, tmp_path: Path
) -> None:
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client)
        at = f"/api/v1/machines/{machine}/sessions/s/effects"
        for number in (1, 2):
            await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
            await until(functools.partial(came_to, there, number))
            what = "cancel" if number == 1 else "answer"
            body = {} if number == 1 else {"status": 202, "json": {"a": 1}}
            answer = await client.http.post(f"{at}/{number}/{what}", json=body)
            assert answer.status_code == 204, answer.text
            await came(client, machine, "s", number)
        found = await context(client, machine, "s")
        assert found["why"] == ["AbortError: the request was cancelled by hand"]
        assert [(each["status"], each["text"]) for each in found["got"]] == [(202, '{"a":1}')]
        for headers in ({"a b": "x"}, {"": "x"}, {"a": "x\ny"}, {"a": "Ω"}):
            wrong = await client.http.post(f"{at}/2/answer", json={"headers": headers})
            problem(wrong, 400, "invalid_body")
        for cursor in ("", "eA==", "x"):  # nothing, "x" in base64, and no base64
            problem(await client.http.get(f"{at}?cursor={cursor}"), 400, "invalid_cursor")
        page = (await client.http.get(f"{at}?limit=1")).json()
        older = (await client.http.get(f"{at}?cursor={page['next']}")).json()
        assert [each["id"] for each in page["data"] + older["data"]] == [2, 1]
        problem(await client.http.post(f"{at}/2/cancel"), 404, "no_such_request")
        problem(await client.http.post(f"{at}/99/cancel"), 404, "no_such_request")
        outcomes = [each["outcome"] for each in await effects(client, machine, "s")]
        assert outcomes == ["answered_by_hand", "request_cancelled"]
        await until(lambda: not client.hub.broker.known)


async def test_a_machine_that_cannot_take_an_answer(tmp_path: Path) -> None:
    """The turn is undone, and tried again; then the machine hears that it failed."""
    source = FETCHER.replace(
        "got: ({ context, event }) => [...context.got, event.output]",
        "got: () => { throw new Error('no room'); }",
    )
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, source)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/echo"})
        [why] = (await came(client, machine, "s"))["why"]
        assert "could not be taken" in why
        assert "no room" in why
        assert len(there.seen) == 1


async def test_a_session_that_ends_or_is_deleted_waits_for_nothing(tmp_path: Path) -> None:
    source = FETCHER.replace("on: { stop: ", "on: { end: '#end', stop: ").replace(
        "states: {\n", "states: { end: { id: 'end', type: 'final' },\n", 1
    )
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, source)
        for name in ("s", "t"):
            await send(client, machine, name, {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way == 2)
        await send(client, machine, "s", {"type": "end"})
        await until(lambda: client.hub.broker.known == 1)
        [effect] = await effects(client, machine, "s")
        assert effect["outcome"] == "session_finished"
        await client.http.delete(f"/api/v1/machines/{machine}/sessions/t")
        there.let_go.set()
        await until(lambda: not client.hub.broker.known)


async def test_a_start_that_fetches_and_a_restart(database_url: str, tmp_path: Path) -> None:
    source = FETCHER.replace('initial: "idle"', 'initial: "busy"').replace(
        "input: ({ event }) => event,", "input: { url: '%s' },"
    )
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client, source % (there.url + "/echo"))
        await context(client, machine, "s")
        await came(client, machine, "s")
        answer = await client.http.post(f"/api/v1/machines/{machine}/sessions/s/restart")
        assert answer.status_code == 200, answer.text
        await until(lambda: len(there.seen) == 2)
        await came(client, machine, "s")
        assert len({each.header("idempotency-key") for each in there.seen}) == 2


async def test_a_machine_asks_at_its_rate(tmp_path: Path) -> None:
    """What is over waits: twelve at five a second, five of them at once, take more than a second."""
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, per_second=5)
        began_s = asyncio.get_running_loop().time()
        for number in range(12):
            await send(client, machine, f"s{number}", {"type": "fetch", "url": there.url + "/echo"})
        for number in range(12):
            await came(client, machine, f"s{number}")
        assert asyncio.get_running_loop().time() - began_s > 1.2


async def test_new_rules_are_a_new_versions(tmp_path: Path) -> None:
    """A session stays on the rules that it began with."""
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client)
        event = {"type": "fetch", "url": there.url + "/echo"}
        await send(client, machine, "old", event)
        await came(client, machine, "old")
        await deployed(client, allow=[])
        await send(client, machine, "new", event)
        await send(client, machine, "old", event)
        [why] = (await came(client, machine, "new"))["why"]
        assert "egress rules" in why
        assert len((await came(client, machine, "old", 2))["got"]) == 2


async def test_a_request_that_is_none(tmp_path: Path) -> None:
    """What a machine forges hurts itself alone."""
    source = FETCHER.replace(
        "const call = fromPromise(async ({ input, signal }) => {",
        "const call = fromPromise(async ({ input, signal }) => { if (input.spoil) Object.prototype.toJSON = () => 5;",
    )
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, source)
        event = {"type": "fetch", "url": there.url + "/echo", "spoil": True}
        await client.http.post(f"/{machine}/s", json=event)
        await send(client, machine, "t", {"type": "fetch", "url": there.url + "/echo"})
        assert len((await came(client, machine, "t"))["got"]) == 1
        await until(lambda: not client.hub.broker.known)
