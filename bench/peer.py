"""The peer of `make bench-peer`: workerd with a Durable Object per session, durable per event,
under the same load.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from bench.__main__ import measure
from bench.hub import free_port

FOLDER = Path(__file__).parent / "peers" / "workerd"


class Workerd:
    """`with Workerd(folder) as peer`: what bench.load needs, a port and a process."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.port = free_port()

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Workerd:  # noqa: PYI034
        # The npm package's own launcher is a Node process around this binary, which would count as
        # server.
        binary = next((FOLDER / "node_modules" / "@cloudflare").glob("workerd-*/bin/workerd"))
        self._process = subprocess.Popen(
            [
                str(binary),
                "serve",
                "config.capnp",
                "--experimental",
                "--socket-addr",
                f"http=127.0.0.1:{self.port}",
                "--directory-path",
                f"disk={self.data}",
            ],
            cwd=FOLDER,
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                httpx.get(f"http://127.0.0.1:{self.port}/")
                return self
            except httpx.HTTPError:
                time.sleep(0.05)
        raise SystemExit("workerd did not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    with tempfile.TemporaryDirectory() as data, Workerd(data) as peer:
        opening = measure("opening", peer, "m", sessions=300)
        ping = measure("events", peer, "m", sessions=1, clients=1, seconds=3)
        many = measure("events", peer, "m", sessions=100, clients=1, seconds=5)
        fan = measure("events", peer, "m", sessions=1, clients=100, seconds=4)
        memory = measure("memory", peer, "m", sessions=1000)
    print("| | workerd, a Durable Object per session |\n| --- | --- |")
    print(f"| 100 sessions x 1 client: events per CPU-second | {many['events_per_cpu_s']:,.0f} |")
    print(f"| ping-pong of one client, p50 | {ping['p50_ms']:.2f} ms |")
    print(
        "| 1 session x 100 clients: deliveries per CPU-second | "
        f"{fan['deliveries_per_cpu_s']:,.0f} |"
    )
    print(f"| open a new session, server CPU | {opening['cpu_ms']:.2f} ms |")
    print(f"| private memory per session | {memory['kb_per_session']:.0f} KB |")


if __name__ == "__main__":
    main()
