"""What tokens, rules and views cost: the same counter with and without, on one hub, in turns."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import httpx
import jwt

from bench.hub import COUNTER, BenchHub

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN: Final = "mh_bench"
ROUNDS: Final = 6
MEMBERS: Final = 100
FREE: Final[dict[str, str]] = {
    f"MACHINEHUB_LIMIT_{name}": "1000000000"
    for name in ("EVENTS_PER_S", "EVENT_BURST_BYTES", "MACHINE_EVENTS_PER_S", "REQUESTS_PER_S")
} | {"MACHINEHUB_LIMIT_CONNECTIONS_PER_ADDRESS": "10000", "MACHINEHUB_LIMIT_JOINS_PER_S": "10000"}
"""Limits for strangers, which are not what is measured."""
ROLES: Final = [{"events": ["increment"], "roles": ["player"]}]
STATES: Final = [{"events": ["increment"], "states": ["active"], "sub": "context.nobody"}]
STATES_OR: Final = [*STATES, {"events": ["increment"], "states": ["*"], "roles": ["player"]}]
CODE: Final = "\nexport const access = ({ member }) => member.roles.includes('player');"
OWN: Final = "\nexport const view = ({ snapshot, member }) => ({ ...snapshot, me: member.user });"
SHARED: Final = "\nexport const view = ({ snapshot }) => ({ ...snapshot });"


def deploy(hub: BenchHub, name: str, source: str = COUNTER, **more: Any) -> str:
    body = {"name": name, "entry": "m.ts", "files": {"m.ts": source}, **more}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"{hub.url}/api/v1/deployments"
    answer = httpx.post(url, json=body, headers=headers, timeout=30).raise_for_status()
    machine: str = answer.json()["machine"]["id"]
    return machine


def access(data: str, measure: Callable[..., dict[str, Any]]) -> list[tuple[str, str, str]]:
    with BenchHub(data, command=(), MACHINEHUB_TOKEN=TOKEN, **FREE) as hub:
        made = httpx.post(
            f"{hub.url}/api/v1/projects/default/jwt-keys",
            json={"name": "bench"},
            headers={"Authorization": f"Bearer {TOKEN}"},
        ).json()
        exp = int(time.time()) + 3600
        tokens = [
            jwt.encode(
                {"sub": f"user-{number}", "roles": ["player"], "exp": exp},
                made["secret"],
                "HS256",
                {"kid": made["kid"]},
            )
            for number in range(MEMBERS)
        ]
        machines = {
            "nobody asked, nothing shown": (deploy(hub, "public", private=False), []),
            "with connect tokens": (deploy(hub, "private"), tokens),
            "and a table of roles": (deploy(hub, "roles", access=ROLES), tokens),
            "and a table of states, roles and a user": (
                deploy(hub, "states", access=STATES_OR),
                tokens,
            ),
            "and `access` as code": (deploy(hub, "code", COUNTER + CODE), tokens),
        }
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in machines}
        for number in range(ROUNDS):
            # There and back: what ran before still puts its sessions to sleep.
            for name, (machine, shown) in list(machines.items())[:: -1 if number % 2 else 1]:
                ran = measure(
                    "events", hub, machine, sessions=50, clients=1, seconds=2, tokens=shown
                )
                assert not ran["rejected"], name
                found[name].append(ran)
        rows = []
        plain = median(_us(each) for each in found["nobody asked, nothing shown"])
        for name, runs in found.items():
            us = median(map(_us, runs))
            rows.append((f"an event, {name}: CPU of hub and workers", f"{us:.0f} us", ""))
        rows.append(("of which the first two differ by", f"{_percent(found, plain):+.1f} %", "2 %"))
        for name, source in (
            ("no view", COUNTER),
            ("one view for all of a role", COUNTER + SHARED),
            ("a view of their own", COUNTER + OWN),
        ):
            machine = deploy(hub, name.replace(" ", "-"), source)
            ran = measure(
                "events", hub, machine, sessions=1, clients=MEMBERS, seconds=4, tokens=tokens
            )
            what = f"1 session x {MEMBERS} members, {name}"
            told = (
                f"{ran['deliveries_per_cpu_s']:,.0f} a CPU-second, ack p50 {ran['p50_ms']:.1f} ms"
            )
            rows.append((f"{what}: deliveries", told, ""))
        return rows


def _us(ran: dict[str, Any]) -> float:
    return float(ran["hub_us"] + ran["workers_us"])


def _percent(found: dict[str, list[dict[str, Any]]], plain: float) -> float:
    return (median(map(_us, found["with connect tokens"])) / plain - 1) * 100
