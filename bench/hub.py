"""A hub as a process of the benchmark's own."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import httpx

ROOT = Path(__file__).parent.parent
COUNTER = (ROOT / "examples" / "counter.ts").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class BenchHub:
    """`with BenchHub(folder) as hub`: ready when entered, told to stop when left.

    `ready_s` is how long its start took.
    """

    def __init__(self, data: str, *, command: tuple[str, ...] = (), **environment: str) -> None:
        """`command` runs the command line in another way than as it is installed."""
        self.data = data
        self.port = free_port()
        self._command = command or (str(Path(sys.executable).parent / "machinehub"),)
        self._environment = environment
        self.ready_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("MACHINEHUB_")
        } | self._environment
        started = time.perf_counter()
        command = [*self._command, "serve", "--port", str(self.port), "--data", self.data]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while True:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    self.ready_s = time.perf_counter() - started
                    return self
            except httpx.HTTPError:
                pass
            if time.perf_counter() - started > 120:
                raise SystemExit("the hub did not start")
            time.sleep(0.005)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def settle(self) -> None:
        """Waits until the sessions of an earlier measurement are asleep: putting them there costs
        what it costs.
        """
        deadline = time.monotonic() + 30
        while self.metric("machinehub_live_sessions") and time.monotonic() < deadline:
            time.sleep(0.5)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return float(
            next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} "))
        )

    def deploy_source(self, name: str, source: str) -> str:
        """The machine's id."""
        body = {"name": name, "entry": "m.ts", "files": {"m.ts": source}}
        machine: str = (
            httpx.post(f"{self.url}/api/v1/deployments", json=body, timeout=30)
            .raise_for_status()
            .json()["machine"]["id"]
        )
        return machine

    def deploy(self, *, times: int = 1) -> tuple[float, float, str]:
        """Milliseconds from source to first snapshot over WebSocket, and for the same content
        again; the machine's id.
        """
        from websockets.sync.client import connect

        fresh, again = [], []
        machine = ""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for number in range(times):
                body = {
                    "name": "bench",
                    "entry": "counter.ts",
                    "files": {"counter.ts": f"{COUNTER}\n// {number} {time.time()}"},
                }
                started = time.perf_counter()
                url = (
                    client.post("/api/v1/deployments", json=body)
                    .raise_for_status()
                    .json()["machine"]["url"]
                )
                with connect(url.replace("http", "ws", 1) + f"/deploy-{number}") as peer:
                    peer.recv()
                fresh.append((time.perf_counter() - started) * 1000)
                started = time.perf_counter()
                client.post("/api/v1/deployments", json=body).raise_for_status()
                again.append((time.perf_counter() - started) * 1000)
                machine = url.rsplit("/", 1)[1]
        return statistics.median(fresh), statistics.median(again), machine
