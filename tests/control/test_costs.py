"""What turns cost, and what a version allows itself: receipts, `check --budget`, `[limits]`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.limits import Limits, MachineLimits, excessive, lowered
from tests.attacks.test_machines import acting, fresh, handling
from tests.cli.test_cli import run
from tests.support import COUNTER, ROOT, Client, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path

# Far dearer than an event that does nothing, whatever else the machine does meanwhile, and far from
# the limit of a turn.
WORK = acting("for (let i = 0; i < 2e5; i++);")


# --- receipts -------------------------------------------------------------------------------------


async def test_who_asks_is_told_what_a_turn_cost(client: Client) -> None:
    machine = await client.deploy(WORK, name="costs")
    session = fresh()
    plain = (await client.http.post(f"/{machine}/{session}", json={"type": "OK"})).json()
    assert "cost" not in plain
    light, heavy = [
        (await client.http.post(f"/{machine}/{session}?cost=1", json={"type": kind})).json()["cost"]
        for kind in ("OK", "X")
    ]
    assert 0 < light["cpu_us"] < heavy["cpu_us"]
    assert light["memory_bytes"] % 65536 == 0
    assert "fuel" not in light
    async with (
        client.socket(f"{machine}/{session}?cost=1") as asking,
        client.socket(f"{machine}/{session}") as other,
    ):
        assert (await asking.event("OK"))["cost"]["cpu_us"] > 0
        assert "cost" not in await other.event("OK")


async def test_a_refused_turn_has_its_price_too(client: Client) -> None:
    machine = await client.deploy(acting("for (;;);"), name="dear")
    session = fresh()
    problem = (await client.http.post(f"/{machine}/{session}?cost=1", json={"type": "X"})).json()
    assert (problem["code"], problem["cost"]["cpu_us"] >= 45_000) == ("cpu_exceeded", True)
    async with client.socket(f"{machine}/{session}?cost=1") as peer:
        ack = await peer.event("X")
        assert (ack["error"]["code"], ack["cost"]["cpu_us"] >= 45_000) == ("cpu_exceeded", True)
    line = (await client.http.get("/api/v1/machines/dear/logs")).json()["data"][-1]
    assert (line["level"], line["cost"]["cpu_us"] >= 45_000) == ("error", True)


async def test_fuel_is_the_same_for_the_same_work(tmp_path: Path) -> None:
    """In two sessions, on two hubs, in the order of their arrival: what the clock measured may
    differ, fuel does not.
    """
    spent: list[list[int]] = []
    for number in range(2):
        async with running_hub(tmp_path / str(number), workers=1, fuel=True) as client:
            machine = await client.deploy(WORK, name="fuel")
            for session in ("a", "b"):
                await client.http.put(f"/{machine}/{session}")
                answers = [
                    (
                        await client.http.post(
                            f"/{machine}/{session}?cost=1",
                            json={"type": kind},
                            headers={"Idempotency-Key": f"{kind}{n}"},
                        )
                    ).json()
                    for n, kind in enumerate(["X", "X", "OK"])
                ]
                spent.append([answer["cost"]["fuel"] for answer in answers])
    assert len({len(str(fuel)) for each in spent for fuel in each[:2]}) == 1
    for each in spent[
        1:
    ]:  # ids of senders and seeds have other digits in other sessions, which are read and no more
        assert all(
            abs(here - there) < 0.02 * there for here, there in zip(each, spent[0], strict=True)
        ), spent
    assert all(each[0] > each[2] for each in spent)


# --- check --budget -------------------------------------------------------------------------------


async def test_a_budget_of_examples(tmp_path: Path) -> None:
    (tmp_path / "machine.ts").write_text(acting("for (;;);"))
    (tmp_path / "machinehub.toml").write_text(
        'main = "machine.ts"\n[limits]\nevent_cpu_ms = 7\n[[examples]]\ntype = '
        '"OK"\n[[examples]]\ntype = "NOBODY"\nvalue = 5\n'
    )
    measured = await run("check", "--budget", cwd=tmp_path)
    assert measured.returncode == 0, measured.stderr
    rows = [line.split() for line in measured.stdout.splitlines()]
    table = rows[next(n for n, row in enumerate(rows) if row[:2] == ["EVENT", "OUTCOME"]) :]
    assert [row[:2] for row in table[1:]] == [
        ["(start)", "accepted"],
        ["OK", "accepted"],
        ["NOBODY", "accepted"],
    ]
    (tmp_path / "events.json").write_text('[{"type": "OK"}, {"type": "X"}, {"type": "OK"}]')
    spent = await run("check", "--budget", "--events", "events.json", "--json", cwd=tmp_path)
    assert spent.returncode == 6
    budget = json.loads(spent.stdout)["budget"]
    assert [(each["event"], each["outcome"]) for each in budget] == [
        ("(start)", "accepted"),
        ("OK", "accepted"),
        ("X", "cpu_exceeded"),
        ("OK", "accepted"),
    ]
    assert 6_000 < budget[2]["cpu_us"] < 60_000
    assert budget[1]["fuel"] > 0
    assert (
        await run("check", "--budget", "--events", "nowhere.json", cwd=tmp_path)
    ).returncode == 2
    (tmp_path / "machinehub.toml").write_text(
        'main = "machine.ts"\n[limits]\nevent_bytes = 20\n[[examples]]\ntype = "OK"\nvalue = '
        '"longer than twenty bytes"\n[[examples]]\nvalue = 1\n'
    )
    refused = await run("check", "--budget", cwd=tmp_path)
    assert "OK: an event has at most 20 bytes" in refused.stdout
    assert "(no type)  invalid_event" in refused.stdout
    (tmp_path / "machinehub.toml").write_text('main = "machine.ts"\n[limit]\nevent_bytes = 20\n')
    typo = await run("check", cwd=tmp_path)
    assert (typo.returncode, "limit, which means nothing" in typo.stderr.replace("\n", " ")) == (
        2,
        True,
    )


async def test_examples_are_one_of_each_type_without_others() -> None:
    measured = await run("check", "--budget", "--json", str(ROOT / "examples" / "counter.ts"))
    assert [each["event"] for each in json.loads(measured.stdout)["budget"]] == [
        "(start)",
        "decrement",
        "increment",
    ]


# --- [limits] -------------------------------------------------------------------------------------

LOWERED: dict[str, tuple[dict[str, int], str, dict[str, Any], str]] = {
    "event_cpu_ms": (
        {"event_cpu_ms": 5},
        acting("for (let i = 0; i < 4e5; i++);"),
        {"type": "X"},
        "cpu_exceeded",
    ),
    "snapshot_bytes": (
        {"snapshot_bytes": 500},
        handling("on: { X: { actions: assign({ fat: () => 'x'.repeat(600) }) } }"),
        {"type": "X"},
        "snapshot_too_large",
    ),
    "emitted_bytes": (
        {"emitted_bytes": 500},
        handling("on: { X: { actions: emit(() => ({ type: 'e', fat: 'x'.repeat(600) })) } }"),
        {"type": "X"},
        "emitted_exceeded",
    ),
    "timers": (
        {"timers": 3},
        acting("for (let i = 0; i < 4; i++) setTimeout(() => {}, 1e6)"),
        {"type": "X"},
        "timers_exceeded",
    ),
    "actors": (
        {"actors": 2},
        handling(
            "on: { X: { actions: [1, 2, 3].map((n) => spawnChild(fromCallback(() => {}), { id: "
            "'c' + n })) } }"
        ),
        {"type": "X"},
        "actors_exceeded",
    ),
    "jobs": (
        {"jobs": 20},
        acting("let p = Promise.resolve(); for (let i = 0; i < 30; i++) p = p.then(() => {})"),
        {"type": "X"},
        "jobs_exceeded",
    ),
    "memory_bytes": (
        {"memory_bytes": 5 * 2**20},
        acting("const a = []; for (let i = 0; i < 40; i++) a.push(new Uint8Array(1e5))"),
        {"type": "X"},
        "memory_exceeded",
    ),
    "event_depth": ({"event_depth": 3}, acting(""), {"type": "X", "v": [[[1]]]}, "event_too_deep"),
    "event_bytes": (
        {"event_bytes": 100},
        acting(""),
        {"type": "X", "v": "x" * 100},
        "event_too_large",
    ),
}


@pytest.mark.parametrize("name", LOWERED)
async def test_a_version_lowers_a_limit_for_itself(client: Client, name: str) -> None:
    """What its sessions may not do, those of the version before, which are still there, may."""
    limits, source, event, code = LOWERED[name]
    free, bound = fresh(), fresh()
    machine = await client.deploy(source, name=f"own-{name.replace('_', '-')}")
    assert (await client.http.post(f"/{machine}/{free}", json=event)).status_code == 200
    await client.deploy(source, name=f"own-{name.replace('_', '-')}", limits=limits)
    refused = await client.http.post(f"/{machine}/{bound}", json=event)
    assert refused.json()["code"] == code, refused.text
    assert (await client.http.post(f"/{machine}/{bound}", json={"type": "OK"})).status_code == 200
    assert (await client.http.post(f"/{machine}/{free}", json=event)).status_code == 200
    definition = (
        await client.http.get(f"/{machine}", headers={"Accept": "application/json"})
    ).json()["definition"]
    assert definition["limits"] == limits


async def test_a_beginning_has_its_own_limit(client: Client) -> None:
    slow = handling("", context="(() => { for (let i = 0; i < 2e6; i++); return { n: 0 } })()")
    machine = await client.deploy(slow, name="own-start", limits={"start_cpu_ms": 10})
    assert (await client.http.get(f"/{machine}/{fresh()}")).json()["code"] == "cpu_exceeded"
    machine = await client.deploy(acting(""), name="own-input", limits={"input_bytes": 10})
    assert (await client.http.put(f"/{machine}/{fresh()}", json={"input": "x" * 20})).json()[
        "code"
    ] == "input_too_large"


async def test_a_budget_shorter_than_the_watchdogs_tick_is_kept(client: Client) -> None:
    """The watchdog looks every 10 ms; what a turn took is looked at once more when it is over."""
    short = {"event_cpu_ms": 1}
    machine = await client.deploy(
        acting("for (let i = 0; i < 2e5; i++);"), name="short-budget", limits=short
    )
    session = f"/{machine}/{fresh()}"
    answer = await client.http.post(f"{session}?cost=1", json={"type": "X"})
    refused = problem(answer, 422, "cpu_exceeded")
    assert refused["cost"]["cpu_us"] >= 1000
    assert (await client.http.post(session, json={"type": "OK"})).status_code == 200


async def test_less_memory_than_the_engine_takes_is_said(client: Client) -> None:
    response = await client.http.post(
        "/api/v1/deployments",
        json={
            "name": "small",
            "entry": "m.ts",
            "files": {"m.ts": COUNTER},
            "limits": {"memory_bytes": 3_000_000},
        },
    )
    assert (response.status_code, response.json()["code"]) == (422, "build_memory_exceeded")


async def test_logs_of_a_version_are_cut_shorter(client: Client) -> None:
    machine = await client.deploy(
        acting("for (let i = 0; i < 9; i++) console.log('x'.repeat(50))"),
        name="own-logs",
        limits={"log_lines": 3, "log_line_bytes": 20},
    )
    await client.http.post(f"/{machine}/{fresh()}", json={"type": "X"})
    logged = [
        line["text"]
        for line in (await client.http.get("/api/v1/machines/own-logs/logs")).json()["data"]
    ]
    assert [len(text) for text in logged[:3]] == [21, 21, 21]
    assert len(logged) == 4


async def test_connections_and_rates_of_a_version(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="t", workers=1) as client:
        machine = await client.deploy(
            COUNTER,
            name="few",
            limits={"machine_events_per_s": 3, "joins_per_s": 2, "presence_metadata_bytes": 10},
        )
        assert 429 in [
            (await client.http.post(f"/{machine}/s{n}", json={"type": "increment"})).status_code
            for n in range(9)
        ]
        async with client.socket(f"{machine}/s") as peer:
            await peer.send_raw({"type": "presence", "metadata": "x" * 20})
            assert (await peer.until("error"))["code"] == "metadata_too_large"
        machine = await client.deploy(
            COUNTER, limits={"connections_per_session": 1, "events_per_s": 5}
        )
        async with client.socket(f"{machine}/s") as one, client.socket(f"{machine}/s") as two:
            assert {(await one.receive())["type"], (await two.receive())["type"]} == {
                "snapshot",
                "error",
            }
        async with client.socket(f"{machine}/t") as peer:
            acks = [await peer.event("increment") for _ in range(12)]
        assert "rate_limited" in [ack.get("error", {}).get("code") for ack in acks]


@pytest.mark.parametrize(
    "limits", [{"event_cpu_ms": 51}, {"event_cpu_ms": 0}, {"timers": -1}, {"memory_bytes": 2**40}]
)
async def test_limits_only_go_down(client: Client, limits: dict[str, int]) -> None:
    response = await client.http.post(
        "/api/v1/deployments",
        json={"name": "up", "entry": "m.ts", "files": {"m.ts": COUNTER}, "limits": limits},
    )
    assert (response.status_code, response.json()["code"]) == (400, "invalid_limits")


@pytest.mark.parametrize("limits", [{"events": 1}, {"timers": "many"}, {"timers": 1.5}, []])
async def test_limits_that_are_none(client: Client, limits: Any) -> None:
    response = await client.http.post(
        "/api/v1/deployments",
        json={"name": "none", "entry": "m.ts", "files": {"m.ts": COUNTER}, "limits": limits},
    )
    assert (response.status_code, response.json()["code"]) == (400, "invalid_body")


@pytest.mark.core
def test_every_limit_of_a_version_is_one_of_the_hubs() -> None:
    own = MachineLimits(**dict.fromkeys(MachineLimits.__struct_fields__, 1))
    assert excessive(Limits(), own) is None
    assert {getattr(lowered(Limits(), own), name) for name in MachineLimits.__struct_fields__} == {
        1
    }
