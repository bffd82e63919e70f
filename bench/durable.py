"""What durability costs: bytes in the database, waking, replaying, ten thousand sessions."""

from __future__ import annotations

import os
import sqlite3
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from bench.hub import BenchHub
from bench.processes import private_kb

MANY = 10_000
IDLE_S = 14.0
"""Sessions that nobody is connected to are frozen after 10 s; looked for every 2 s."""


def fsync_ms() -> float:
    """What one fsync of a page costs here, p50."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(200):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def sizes(data: str) -> tuple[float, float]:
    """Bytes of the counter's checkpoint after 300 events, and of the database for each further
    event.
    """
    with BenchHub(data) as hub, httpx.Client(base_url=hub.url, timeout=30) as client:
        _, _, machine = hub.deploy()
        for _ in range(300):
            client.post(f"/{machine}/sized", json={"type": "increment"}).raise_for_status()
    database = Path(data) / "hub.db"
    with sqlite3.connect(database) as connection:
        key = connection.execute(
            "SELECT key FROM sessions WHERE session_id = ?", (b"sized",)
        ).fetchone()[0]
        ((checkpoint,),) = connection.execute(
            "SELECT length(data) FROM checkpoints WHERE key = ? ORDER BY seq DESC LIMIT 1", (key,)
        ).fetchall()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = used_bytes(connection)
    events = 20_000
    with BenchHub(data) as hub, ThreadPoolExecutor(8) as threads:
        list(
            threads.map(
                lambda number: send_many(hub.url, f"/{machine}/events-{number}", events // 8),
                range(8),
            )
        )
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return checkpoint, (used_bytes(connection) - before) / events


def used_bytes(connection: sqlite3.Connection) -> int:
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def send_many(url: str, path: str, count: int) -> None:
    """Over one WebSocket, with ids, a few at once."""
    from websockets.sync.client import connect

    with connect(url.replace("http", "ws", 1) + path, max_size=None) as socket:
        for first in range(0, count, 50):
            for number in range(first, min(first + 50, count)):
                socket.send(
                    f'{{"type":"event","id":"client-{number}","event":{{"type":"increment"}}}}'
                )
            acks = 0
            while acks < min(50, count - first):
                acks += '"type":"ack"' in str(socket.recv())


def waking(hub: BenchHub, machine: str, *, sessions: int) -> float:
    """Milliseconds of an event to a session that is frozen, over HTTP, p50."""
    with httpx.Client(base_url=hub.url, timeout=30) as client:
        for number in range(sessions):
            for _ in range(3):
                client.post(
                    f"/{machine}/wake-{number}", json={"type": "increment"}
                ).raise_for_status()
        time.sleep(IDLE_S)
        times = []
        for number in range(sessions):
            started = time.perf_counter()
            answer = client.post(
                f"/{machine}/wake-{number}", json={"type": "increment"}
            ).raise_for_status()
            times.append((time.perf_counter() - started) * 1000)
            assert answer.json()["seq"] == 5
    return statistics.median(times)


def replaying(hub: BenchHub, machine: str, *, events: int) -> float:
    """Inputs per second of a replay from the beginning, of one session."""
    send_many(hub.url, f"/{machine}/replayed", events)
    answer = (
        httpx.post(f"{hub.url}/api/v1/machines/{machine}/sessions/replayed/replay", timeout=120)
        .raise_for_status()
        .json()
    )
    assert answer["verified"]
    return float(answer["inputs"] / answer["ms"] * 1000)


def ten_thousand(data: str) -> dict[str, Any]:
    """10 000 sessions of which 100 are live: memory of all processes; then how long a restart
    takes.
    """
    with BenchHub(data, MACHINEHUB_LIMIT_LIVE_SESSIONS="100") as hub:
        _, _, machine = hub.deploy()

        def create(numbers: range) -> None:
            with httpx.Client(base_url=hub.url, timeout=60) as client:
                for number in numbers:
                    client.post(
                        f"/{machine}/many-{number}", json={"type": "increment"}
                    ).raise_for_status()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(create, [range(first, MANY, 8) for first in range(8)]))
        deadline = time.monotonic() + 30
        while hub.metric("machinehub_live_sessions") > 100 and time.monotonic() < deadline:
            time.sleep(0.5)
        live, memory_mb = hub.metric("machinehub_live_sessions"), private_kb(hub.pid) / 1024
    with BenchHub(data) as hub:
        ready_s = hub.ready_s
        seen = httpx.get(f"{hub.url}/{machine}/many-{MANY - 1}").json()
        assert seen["snapshot"]["context"] == {"count": 1}
    return {"live": live, "memory_mb": memory_mb, "ready_s": ready_s}
