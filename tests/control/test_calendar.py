"""Calendars: each time is sent once, also after downtime, and is listed with what came of it."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.calendar import MADE_UP_MAX, CalendarEntry, check_calendar
from machinehub.clock import ManualClock, SystemClock
from machinehub.errors import BadRequest, Unavailable
from tests.durable import hub_on
from tests.support import Client, problem, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

BELL = """
import { assign, setup } from "xstate";
export default setup({}).createMachine({
  context: { rings: 0, by: "" },
  on: {
    RING: { actions: assign({ rings: ({ context }) => context.rings + 1, by: ({ event }) => event.sender.id }) },
    FAIL: { actions: () => { throw new Error("no"); } },
  },
});
"""
MINUTE = 60_000
NOON = int(dt.datetime(2026, 6, 1, 12, tzinfo=dt.UTC).timestamp() * 1000)


def entry(expression: str = "* * * * *", **more: Any) -> CalendarEntry:
    given = {"name": "e", "expression": expression, "session": "s", "event": "RING", **more}
    return CalendarEntry(**given)


def at(*parts: int, zone: str = "UTC") -> int:
    from zoneinfo import ZoneInfo

    when = dt.datetime(*parts, tzinfo=ZoneInfo(zone))  # type: ignore[misc,arg-type]
    return int(when.timestamp() * 1000)


# --- which times ----------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize(
    ("expression", "zone", "after", "wanted"),
    [
        ("0 3 * * *", "UTC", (2026, 1, 1), (2026, 1, 1, 3)),
        ("*/15 9-17 * * MON-FRI", "UTC", (2026, 1, 2, 17, 45), (2026, 1, 5, 9)),
        ("0 0 29 2 *", "UTC", (2026, 1, 1), (2028, 2, 29)),
        ("0 0 * * 5#2", "UTC", (2026, 1, 1), (2026, 1, 9)),
        ("0 9 * * *", "Europe/Vienna", (2026, 3, 28, 12), (2026, 3, 29, 9)),
        # An hour that is left out in spring, and one that comes twice in autumn.
        ("30 2 * * *", "Europe/Vienna", (2026, 3, 29, 0), (2026, 3, 29, 3)),
        ("0 12 * * *", "America/New_York", (2026, 10, 31, 13), (2026, 11, 1, 12)),
    ],
)
def test_the_next_time(
    expression: str, zone: str, after: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    found = entry(expression, zone=zone).next_after(at(*after, zone=zone))
    assert found == at(*wanted, zone=zone)


@pytest.mark.core
def test_a_time_that_comes_twice_is_sent_once() -> None:
    """Summer time ends: the hour from two to three is there twice."""
    times = entry("30 2 * * *", zone="Europe/Vienna").times_after(at(2026, 10, 24))
    days = [
        dt.datetime.fromtimestamp(each / 1000, dt.UTC).day for each in itertools.islice(times, 3)
    ]
    assert days == [24, 25, 26]


@pytest.mark.core
def test_a_day_that_never_comes() -> None:
    assert entry("0 0 30 2 *").next_after(NOON) is None


@pytest.mark.core
def test_what_is_made_up_for() -> None:
    now = NOON + 10 * MINUTE + 30_000
    missed = [NOON + minute * MINUTE for minute in range(11)]
    assert entry(catch_up="all").due(NOON, now) == missed
    assert entry(catch_up="last").due(NOON, now) == missed[-1:]
    assert entry(catch_up="none").due(NOON, now) == missed[-1:]  # half a minute is not late
    hourly = {"expression": "0 * * * *"}
    assert entry(**hourly, catch_up="last").due(NOON, now) == [NOON]
    assert entry(**hourly, catch_up="none").due(NOON, now) == []
    year = NOON + 365 * 24 * 60 * MINUTE
    assert len(entry(catch_up="all").due(NOON, year)) == MADE_UP_MAX


@pytest.mark.core
@pytest.mark.parametrize(
    "wrong",
    [
        {"expression": "* * * *"},
        {"expression": "* * * * * *"},
        {"expression": "61 * * * *"},
        {"expression": "a b c d e"},
        {"zone": "Mars/Olympus"},
        {"zone": "../../etc/passwd"},
        {"zone": ""},
    ],
)
def test_what_cannot_be(wrong: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        check_calendar([entry(**wrong)])


# --- sending --------------------------------------------------------------------------------------


async def deploy(client: Client, *entries: dict[str, Any], source: str = BELL) -> str:
    answer = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "bell",
            "entry": "m.ts",
            "files": {"m.ts": source},
            "cron": [{"session": "s", "event": "RING", **each} for each in entries],
            "private": False,
        },
    )
    assert answer.status_code in (200, 201), answer.text
    name: str = answer.json()["machine"]["id"]
    return name


async def rings(client: Client, machine: str) -> int:
    answer = await client.http.get(f"/{machine}/s")
    return int(answer.json()["snapshot"]["context"]["rings"])


async def listed(client: Client, machine: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        await client.http.get(f"/api/v1/machines/{machine}/cron")
    ).json()["data"]
    return found


async def test_each_time_is_sent_once(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock(NOON + 1)
    minutely = {"name": "bell", "expression": "* * * * *"}
    async with hub_on(database_url, tmp_path, clock=clock) as hub:
        machine = await deploy(hub, minutely)
        await hub.hub.calendar.look()
        assert (await listed(hub, machine))[0]["next_at"] == "2026-06-01T12:01:00.000Z"
        assert await rings(hub, machine) == 0
        for minute in (1, 2):
            clock.move_to(NOON + minute * MINUTE)
            for _ in range(3):
                await hub.hub.calendar.look()
            assert await rings(hub, machine) == minute
        assert (await hub.http.get(f"/{machine}/s")).json()["snapshot"]["context"]["by"] == (
            "cron.bell"
        )
        # What was sent and could not be noted is sent again, and taken once.
        clock.move_to(NOON + 3 * MINUTE)
        store = hub.hub.calendar._store
        real = store.ran

        async def away(*_: Any, **__: Any) -> None:
            raise Unavailable("unavailable", "the database is away")

        store.ran = away  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await hub.hub.calendar.look()
        store.ran = real  # type: ignore[method-assign]
        await hub.hub.calendar.look()
        assert await rings(hub, machine) == 3
    # While no hub runs, times pass.
    clock.move_to(NOON + 30 * MINUTE)
    async with hub_on(database_url, tmp_path, clock=clock) as hub:
        await hub.hub.calendar.look()
        assert await rings(hub, machine) == 4
        (found,) = await listed(hub, machine)
        assert found["next_at"] == "2026-06-01T12:31:00.000Z"
        assert [run["at"][11:16] for run in found["runs"]] == ["12:30", "12:03", "12:02", "12:01"]
        assert {run["outcome"] for run in found["runs"]} == {"accepted"}


async def test_it_is_sent_when_its_time_comes(tmp_path: Path) -> None:
    ahead_ns = NOON * 10**6 - time.time_ns() - 2 * 10**9
    clock = SystemClock(wall_ns=lambda: time.time_ns() + ahead_ns)
    async with running_hub(tmp_path, clock=clock) as hub:
        # Every minute: where two seconds were not enough until it was there, it is the next one's.
        machine = await deploy(hub, {"name": "bell", "expression": "* * * * *"})

        async def has_run() -> bool:
            """It is noted behind the event."""
            (found,) = await listed(hub, machine)
            return bool(found["runs"])

        await until(has_run, within_s=180)
        assert await rings(hub, machine) == 1
        (found,) = await listed(hub, machine)
        assert found["runs"][0]["at"].endswith(":00.000Z")
        assert found["runs"][0]["ran_at"] >= found["runs"][0]["at"]


async def test_an_active_version_has_the_calendar(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock(NOON)
    async with hub_on(database_url, tmp_path, clock=clock) as hub:
        machine = await deploy(hub, {"name": "a", "expression": "0 * * * *"})
        clock.move_to(NOON + 70 * MINUTE)
        # An entry that stays as it is keeps what is due; another begins now.
        await deploy(
            hub,
            {"name": "a", "expression": "0 * * * *"},
            {
                "name": "b",
                "expression": "*/30 * * * *",
                "zone": "Asia/Kolkata",
                "event": {"type": "RING", "x": 1},
            },
        )
        before = {each["name"]: each["next_at"][11:16] for each in await listed(hub, machine)}
        assert before == {"a": "13:00", "b": "13:30"}
        await hub.http.post(f"/api/v1/machines/{machine}/versions/1/activate")
        assert [each["name"] for each in await listed(hub, machine)] == ["a"]
        await deploy(hub)
        assert await listed(hub, machine) == []
        await hub.http.delete(f"/api/v1/machines/{machine}")


async def test_what_a_machine_refuses_is_listed(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock(NOON)
    async with hub_on(database_url, tmp_path, clock=clock) as hub:
        machine = await deploy(hub, {"name": "a", "expression": "* * * * *", "event": "FAIL"})
        clock.move_to(NOON + MINUTE)
        await hub.hub.calendar.look()
        (found,) = await listed(hub, machine)
        (run,) = found["runs"]
        assert (run["outcome"], run["seq"]) == ("machine_error", None)
        assert "no" in run["detail"]
        for minute in range(2, 110):
            clock.move_to(NOON + minute * MINUTE)
            await hub.hub.calendar.look()
        (found,) = await listed(hub, machine)
        assert len(found["runs"]) == 100


async def test_a_client_cannot_use_up_the_calendars_ids(client: Client) -> None:
    machine = await deploy(client, {"name": "a", "expression": "0 0 1 1 *"})
    for event_id in ("cron 2027-01-01T00:00:00.000Z", "\0cron.a\0cron 2027-01-01T00:00:00.000Z"):
        async with client.socket(f"{machine}/s") as socket:
            await socket.event("RING", event_id=event_id)
    (due,) = [
        each
        for each, _ in await client.hub.calendar._store.of_machine(machine)  # type: ignore[arg-type]
    ]
    assert due.due_at_ms is not None
    before = await rings(client, machine)
    run = await client.hub.calendar._send(due, due.due_at_ms)
    assert run.outcome == "accepted"
    assert await rings(client, machine) == before + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"expression": "nonsense"},
        {"session": ""},
        {"session": "-hooks"},
        {"event": "xstate.stop"},
        {"event": {"no": "type"}},
        {"event": 7},
        {"name": "no spaces"},
        {"catch_up": "some"},
        {"color": "red"},
    ],
)
async def test_a_deployment_with_a_wrong_calendar(client: Client, wrong: dict[str, Any]) -> None:
    given = {"name": "a", "expression": "0 0 * * *", "session": "s", "event": "RING", **wrong}
    answer = await client.http.post(
        "/api/v1/deployments",
        json={"name": "wrong-cron", "entry": "m.ts", "files": {"m.ts": BELL}, "cron": [given]},
    )
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["code"] in (
        "invalid_cron",
        "invalid_session_id",
        "invalid_event",
        "invalid_body",
    )
    problem(await client.http.get("/api/v1/machines/wrong-cron"), 404, "no_such_machine")


async def test_the_command_lists_it(client: Client, tmp_path: Path) -> None:
    from tests.cli.test_cli import run

    (tmp_path / "bell.ts").write_text(BELL)
    (tmp_path / "machinehub.toml").write_text(
        'name = "cron-bell"\nmain = "bell.ts"\n\n[[cron]]\nname = "nightly"\n'
        'expression = "0 3 * * *"\nzone = "Europe/Vienna"\nsession = "tower"\nevent = "RING"\n'
    )
    there: dict[str, Any] = {"MACHINEHUB_SERVER": client.url}
    assert (await run("deploy", cwd=tmp_path, **there)).returncode == 0
    shown = (await run("cron", "cron-bell", **there)).stdout
    assert "nightly" in shown
    assert "0 3 * * *" in shown
    said = json.loads((await run("cron", "cron-bell", "--json", **there)).stdout)
    assert said[0]["event"] == {"type": "RING"}
    (tmp_path / "machinehub.toml").write_text('main = "bell.ts"\n[[cron]]\nname = "x"\n')
    wrong = await run("check", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "[cron] in machinehub.toml" in wrong.stderr
