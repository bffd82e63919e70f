"""`make bench-peer`: workerd, durable per event, under the same load as a hub beside it.

Two ways: a Durable Object per session whose code is compiled into the configuration, and the Worker
Loader, where a script's code comes as data into an isolate of its own, which is closer to a hub.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import httpx

from bench.__main__ import measure
from bench.hub import BenchHub, free_port

FOLDER = Path(__file__).parent / "peers" / "workerd"


class Workerd:
    """`with Workerd(folder) as peer`: what bench.load needs, a port and a process."""

    def __init__(self, data: str, config: str) -> None:
        self.data = data
        self._config = config
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
                self._config,
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


FIGURES = {
    "100 sessions x 1 client: events per CPU-second": ("many", "events_per_cpu_s", "{:,.0f}"),
    "ping-pong of one client, p50, ms": ("ping", "p50_ms", "{:.2f}"),
    "1 session x 100 clients: deliveries per CPU-second": (
        "fan",
        "deliveries_per_cpu_s",
        "{:,.0f}",
    ),
    "open a new session, server CPU, ms": ("opening", "cpu_ms", "{:.2f}"),
    "private memory per session, KB": ("memory", "kb_per_session", "{:.0f}"),
}


def measured(server: BenchHub | Workerd, machine: str) -> dict[str, dict[str, float]]:
    def run(name: str, **options: float) -> dict[str, float]:
        return measure(name, server, machine, **options)

    return {
        "opening": run("opening", sessions=300),
        "ping": run("events", sessions=1, clients=1, seconds=3),
        "many": run("events", sessions=100, clients=1, seconds=5),
        "fan": run("events", sessions=1, clients=100, seconds=4),
        "memory": run("memory", sessions=1000),
    }


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as data:
        for folder in ("hub", "object", "loader"):
            (Path(data) / folder).mkdir()
        with BenchHub(f"{data}/hub") as hub:
            _, _, machine = hub.deploy()
            found["machinehub"] = measured(hub, machine)
        for name, config in (("object", "config.capnp"), ("loader", "loader.capnp")):
            with Workerd(f"{data}/{name}", config) as peer:
                found[name] = measured(peer, "m")
    print("| | machinehub | Durable Object | Worker Loader | ratio to the latter |")
    print("| --- | --- | --- | --- | --- |")
    for what, (part, figure, spelled) in FIGURES.items():
        hub_has, object_has, loader_has = (found[name][part][figure] for name in found)
        cells = " | ".join(spelled.format(each) for each in (hub_has, object_has, loader_has))
        print(f"| {what} | {cells} | {hub_has / loader_has:.2f} |")


if __name__ == "__main__":
    main()
