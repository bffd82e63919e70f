"""`make bench`: starts a hub of its own, measures it, prints the table of bench/RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parent.parent
COUNTER = (ROOT / "examples" / "counter.ts").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_hub(data: str, port: int) -> tuple[subprocess.Popen[bytes], float]:
    """The hub and how long it took to be ready."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MACHINEHUB_")}
    started = time.perf_counter()
    hub = subprocess.Popen([str(Path(sys.executable).parent / "machinehub"), "serve", "--port", str(port), "--data", data], env=environment, stderr=subprocess.DEVNULL)
    while True:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return hub, time.perf_counter() - started
        except httpx.HTTPError:
            pass
        if time.perf_counter() - started > 120:
            raise SystemExit("the hub did not start")
        time.sleep(0.005)


def measure(name: str, port: int, machine: str, pid: int, **options: Any) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", name, str(port), machine, str(pid), json.dumps(options)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    if run.returncode:
        raise SystemExit(run.stderr)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


def deploying(client: httpx.Client, *, times: int) -> tuple[float, float, str]:
    """Milliseconds from source to first snapshot over WebSocket, and for the same content again; the machine's id."""
    from websockets.sync.client import connect

    fresh, again = [], []
    machine = ""
    for number in range(times):
        body = {"name": "bench", "entry": "counter.ts", "files": {"counter.ts": f"{COUNTER}\n// {number} {time.time()}"}}
        started = time.perf_counter()
        url = client.post("/api/v1/deployments", json=body).raise_for_status().json()["machine"]["url"]
        with connect(url.replace("http", "ws", 1) + f"/deploy-{number}") as peer:
            peer.recv()
        fresh.append((time.perf_counter() - started) * 1000)
        started = time.perf_counter()
        client.post("/api/v1/deployments", json=body).raise_for_status()
        again.append((time.perf_counter() - started) * 1000)
        machine = url.rsplit("/", 1)[1]
    return statistics.median(fresh), statistics.median(again), machine


def main() -> None:
    with tempfile.TemporaryDirectory() as data:
        hub, _ = start_hub(data, free_port())  # fills the caches
        hub.send_signal(signal.SIGTERM)
        hub.wait(20)
        ready_s = []
        for _ in range(3):
            port = free_port()
            hub, seconds = start_hub(data, port)
            ready_s.append(seconds)
            hub.send_signal(signal.SIGTERM)
            hub.wait(20)
        port = free_port()
        hub, _ = start_hub(data, port)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                fresh, again, machine = deploying(client, times=15)
            pid = hub.pid
            opening = measure("opening", port, machine, pid, sessions=300)
            ping = measure("events", port, machine, pid, sessions=1, clients=1, seconds=3)
            many = measure("events", port, machine, pid, sessions=100, clients=1, seconds=5)
            fan = measure("events", port, machine, pid, sessions=1, clients=100, seconds=4)
            memory = measure("memory", port, machine, pid, sessions=1000)
        finally:
            hub.send_signal(signal.SIGTERM)
            hub.wait(20)
    rows = [
        ("deploy the TypeScript counter to first snapshot over WebSocket, p50", f"{fresh:.0f} ms", "80 ms"),
        ("the same content again, p50", f"{again:.1f} ms", "10 ms"),
        ("open a new session over WebSocket to first snapshot, p50", f"{opening['p50_ms']:.2f} ms", "5 ms"),
        ("open a new session, server CPU", f"{opening['cpu_ms']:.2f} ms", "1.2 ms"),
        ("ping-pong of one client, p50", f"{ping['p50_ms']:.2f} ms", "0.6 ms"),
        ("100 sessions x 1 client: events per CPU-second of all server processes", f"{many['events_per_cpu_s']:,.0f}", "8,000"),
        ("1 session x 100 clients: deliveries per CPU-second", f"{fan['deliveries_per_cpu_s']:,.0f}", "110,000"),
        ("private memory per live session, 1 000 sessions x 3 events", f"{memory['kb_per_session']:.0f} KB", "300 KB"),
        ("hub start, caches warm, to /readyz", f"{statistics.median(ready_s):.2f} s", "1.5 s"),
    ]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| | measured | target |\n| --- | --- | --- |")
    for what, measured, target in rows:
        print(f"| {what} | {measured} | {target} |")
    rejected = sum(result["rejected"] for result in (ping, many, fan))
    assert not rejected, f"{rejected} events were rejected: the figures are not of accepted events"


if __name__ == "__main__":
    main()
