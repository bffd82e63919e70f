"""`make bench`: starts hubs of its own, measures them, prints the tables of bench/RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import durable, guest, trust
from bench.access import access
from bench.cluster import cluster
from bench.effects import effects
from bench.hub import ROOT, BenchHub
from bench.page import page
from bench.processes import cpu_s
from bench.sky import sky
from tests.databases import embedded_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.peer import Workerd


def measure(name: str, hub: BenchHub | Workerd, machine: str, **options: Any) -> dict[str, Any]:
    arguments = [name, str(hub.port), machine, str(hub.pid), json.dumps(options)]
    run = subprocess.run(
        [sys.executable, "-m", "bench.load", *arguments],
        capture_output=True,
        check=True,
        cwd=ROOT,
        timeout=300,
    )
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def on_sqlite(data: str) -> list[tuple[str, str, str]]:
    with BenchHub(data):
        pass  # fills the caches
    ready = []
    for _ in range(3):
        with BenchHub(data) as hub:
            ready.append(hub.ready_s)
    with BenchHub(data) as hub:
        fresh, again, machine = hub.deploy(times=15)
        opening = measure("opening", hub, machine, sessions=300)
        hub.settle()
        commits, seconds = (
            hub.metric("machinehub_commit_seconds_count"),
            hub.metric("machinehub_commit_seconds_sum"),
        )
        ping = measure("events", hub, machine, sessions=1, clients=1, seconds=3)
        commit_ms = (
            (hub.metric("machinehub_commit_seconds_sum") - seconds)
            / (hub.metric("machinehub_commit_seconds_count") - commits)
            * 1000
        )
        lines, commits = (
            hub.metric("machinehub_commit_lines_sum"),
            hub.metric("machinehub_commit_seconds_count"),
        )
        many = measure("events", hub, machine, sessions=100, clients=1, seconds=5)
        share = (hub.metric("machinehub_commit_lines_sum") - lines) / (
            hub.metric("machinehub_commit_seconds_count") - commits
        )
        fan = measure("events", hub, machine, sessions=1, clients=100, seconds=4)
        memory = measure("memory", hub, machine, sessions=1000)
    rejected = sum(result["rejected"] for result in (ping, many, fan))
    assert not rejected, f"{rejected} events were rejected: the figures are not of accepted events"
    return [
        (
            "deploy the TypeScript counter to first snapshot over WebSocket, p50",
            f"{fresh:.0f} ms",
            "30 ms",
        ),
        ("the same content again, p50", f"{again:.1f} ms", "10 ms"),
        (
            "open a new session over WebSocket to first snapshot, p50",
            f"{opening['p50_ms']:.2f} ms",
            "5 ms",
        ),
        ("open a new session, server CPU", f"{opening['cpu_ms']:.2f} ms", "0.7 ms"),
        ("ping-pong of one client, p50", f"{ping['p50_ms']:.2f} ms", "0.45 ms"),
        ("of which the hub's CPU", f"{ping['hub_us']:.0f} us", ""),
        (
            "and the commit, mean (one fsync of 4 KB here, p50)",
            f"{commit_ms:.2f} ms ({durable.fsync_ms():.2f} ms)",
            "",
        ),
        (
            "100 sessions x 1 client: events per CPU-second of all server processes",
            f"{many['events_per_cpu_s']:,.0f}",
            "11,000",
        ),
        ("of which hub and journal, an event", f"{many['hub_us']:.0f} us", "35 us"),
        ("and workers", f"{many['workers_us']:.0f} us", ""),
        ("entries that share a commit there, mean", f"{share:.0f}", ""),
        (
            "1 session x 100 clients: deliveries per CPU-second",
            f"{fan['deliveries_per_cpu_s']:,.0f}",
            "115,000",
        ),
        (
            "private memory per live session, 1 000 sessions x 3 events",
            f"{memory['kb_per_session']:.0f} KB",
            "100 KB",
        ),
        ("hub start, caches warm, to /readyz", f"{statistics.median(ready):.2f} s", "1.0 s"),
    ]


def in_the_guest() -> list[tuple[str, str, str]]:
    found = guest.guest()
    targets = {
        guest.IN_TURNS: "25 us",
        guest.CHECKPOINT: f"{5_632:,} bytes",
        guest.IMAGE: f"{430 * 1024:,} bytes",
    }
    return [
        (name, f"{amount:,.0f} {unit}", targets.get(what, ""))
        for what, amount in found.items()
        for name, _, unit in (what.rpartition(", "),)
    ]


def on_postgres(data: str) -> list[tuple[str, str, str]]:
    server = embedded_server(Path(data))
    try:
        with BenchHub(data, MACHINEHUB_DATABASE_URL=server.get_uri()) as hub:
            _, _, machine = hub.deploy()
            ping = measure("events", hub, machine, sessions=1, clients=1, seconds=3)
            before = sum(cpu_s(server.get_pid()).values())
            many = measure("events", hub, machine, sessions=100, clients=1, seconds=5)
            database_s = sum(cpu_s(server.get_pid()).values()) - before
        assert not many["rejected"]
        events = many["events_per_s"] * 5
        return [
            (
                "100 sessions x 1 client: events per CPU-second of all server processes",
                f"{many['events_per_cpu_s']:,.0f}",
                "6,000",
            ),
            ("CPU of the database beside it, per event", f"{database_s / events * 1e6:.0f} us", ""),
            ("ping-pong of one client, p50", f"{ping['p50_ms']:.2f} ms", ""),
        ]
    finally:
        server.cleanup()


def durability(data: str, sized: str, many: str) -> list[tuple[str, str, str]]:
    with BenchHub(data) as hub:
        _, _, machine = hub.deploy()
        woken = durable.waking(hub, machine, sessions=200)
        rate = durable.replaying(hub, machine, events=5_000)
    checkpoint, per_event = durable.sizes(sized)
    found = durable.ten_thousand(many)
    return [
        ("wake a frozen session (load, thaw, event, commit), p50", f"{woken:.1f} ms", "2 ms"),
        (
            "checkpoint of the counter after 300 events, in the database",
            f"{checkpoint / 1024:.1f} KB",
            "5.5 KB",
        ),
        ("database per event, all tables and indices", f"{per_event:.0f} bytes", "200 bytes"),
        ("replay of one session from its beginning", f"{rate:,.0f} events/s", "10,000 events/s"),
        (
            f"10 000 sessions, {found['live']:.0f} of them live: private memory of all processes",
            f"{found['memory_mb']:.0f} MB",
            "1 024 MB",
        ),
        ("hub start with 10 000 frozen sessions, to /readyz", f"{found['ready_s']:.2f} s", "2 s"),
    ]


def main() -> None:
    wanted = sys.argv[1:] or [
        "guest",
        "sqlite",
        "postgres",
        "durability",
        "page",
        "walls",
        "neighbours",
        "access",
        "cluster",
        "sky",
        "effects",
    ]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for number in range(11):
            (Path(folder) / str(number)).mkdir()
        parts: dict[str, tuple[str, Callable[[], list[tuple[str, str, str]]]]] = {
            "guest": ("The guest alone", in_the_guest),
            "sqlite": ("On SQLite", lambda: on_sqlite(f"{folder}/0")),
            "postgres": ("On Postgres", lambda: on_postgres(f"{folder}/1")),
            "durability": (
                "Durability (SQLite)",
                lambda: durability(f"{folder}/0", f"{folder}/2", f"{folder}/3"),
            ),
            "page": ("The page in Chromium", lambda: page(f"{folder}/4")),
            "walls": ("The walls around workers", lambda: trust.walls(f"{folder}/5", measure)),
            "neighbours": (
                "Beside hostile machines, on one worker",
                lambda: trust.neighbours(f"{folder}/6", measure),
            ),
            "cluster": ("Several hubs", lambda: cluster(f"{folder}/8", measure)),
            "sky": ("Stately's clients", lambda: sky(f"{folder}/9", measure)),
            "effects": ("Requests to the world", lambda: effects(f"{folder}/10")),
            "access": ("Tokens, rules and views", lambda: access(f"{folder}/7", measure)),
        }
        for name in wanted:
            title, run = parts[name]
            print(f"\n{title}\n\n| | measured | target |\n| --- | --- | --- |")
            for what, measured, target in run():
                print(f"| {what} | {measured} | {target} |", flush=True)


if __name__ == "__main__":
    main()
