"""A hub to test against: the real parts in this process, real sandbox workers, a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import os
import socket
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from machinehub.app import Hub
from machinehub.clock import Entropy
from machinehub.ids import MachineId, SessionId
from machinehub.paths import cache_folder
from machinehub.server import HubServer
from machinehub.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from machinehub.clock import Clock
    from machinehub.session.decide.session import Session
    from machinehub.session.run.placement import Place

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
CACHE = cache_folder()
COUNTER = (EXAMPLES / "counter.ts").read_text()


_ports = itertools.count()


def free_port() -> int:
    """A port that nobody has now, nor will be given: each of the processes that test side by side
    has a range of its own, below those from which the system gives ports to whoever asks for any.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    while True:
        port = 10_000 + worker % 10 * 2_000 + next(_ports) % 2_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Asserts that `response` is this problem, and returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert body["status"] == status
    assert {"type", "title", "detail"} <= body.keys()
    return body


async def until(condition: Callable[[], Any], *, within_s: float = 60) -> Any:
    """What `condition`, a function or a coroutine function, says, once that is true: for what tells
    nobody when it changes.

    `within_s` bounds a test that would hang; nothing is concluded from how long it takes.
    """
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if said := (await found if inspect.isawaitable(found) else found):
                return said
            await asyncio.sleep(0.01)


class Client:
    """A test's view of one hub."""

    def __init__(self, hub: Hub, http: httpx.AsyncClient) -> None:
        self.hub = hub
        self.http = http
        self._owners: dict[str, str] = {}

    @property
    def url(self) -> str:
        return self.hub.settings.base_url

    def worker_pids(self) -> list[int]:
        """The session workers that live and are ready."""
        return [
            worker.process.pid
            for worker in self.hub.pool.workers
            if worker.process is not None and worker.ready.is_set() and not worker.lost
        ]

    def find(self, machine: str, session: str) -> Session | None:
        """The session, if it is in the hub's memory."""
        return self.hub.sessions.registry.find(MachineId(machine), SessionId(session))

    def place(self, machine: str, session: str) -> Place:
        """Where the session is, which is in the hub's memory."""
        found = self.find(machine, session)
        assert found is not None
        return self.hub.sessions.placement.place_of(found)

    def connections(self, machine: str, session: str) -> int:
        found = self.find(machine, session)
        return 0 if found is None else self.hub.sessions.crowds.connections(found)

    def watchers(self, machine: str, session: str) -> int:
        """Requests that wait for something of the session."""
        found = self.find(machine, session)
        return 0 if found is None else len(self.hub.sessions.publisher.audience(found).watchers)

    async def put_to_sleep(self, machine: str, session: str) -> None:
        """Returns once the session is on no worker."""
        self.hub.sessions.housekeeper.hibernate()
        placement = self.hub.sessions.placement
        await until(
            lambda: (
                (found := self.find(machine, session)) is None or not placement.is_on_worker(found)
            )
        )

    async def deploy(
        self, source: str, *, name: str = "machine", entry: str = "machine.ts", **more: Any
    ) -> str:
        """Deploys one file; the id of the machine, which is public unless `private` says otherwise.

        Tests share a hub: a name is one test's, so that no test meets another's sessions.
        """
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0].split("[")[0]
        owner = self._owners.setdefault(name, test)
        assert owner == test, f"{owner} deploys a machine of this name too"
        response = await self.http.post(
            "/api/v1/deployments",
            json={
                "name": name,
                "entry": entry,
                "files": {entry: source},
                "private": False,
                **more,
            },
        )
        assert response.status_code in (200, 201), response.text
        machine_id: str = response.json()["machine"]["id"]
        return machine_id

    async def deploy_error(
        self, source: str, *, entry: str = "machine.ts", files: dict[str, str] | None = None
    ) -> dict[str, Any]:
        response = await self.http.post(
            "/api/v1/deployments",
            json={"name": "broken", "entry": entry, "files": {entry: source, **(files or {})}},
        )
        assert response.status_code == 422, response.text
        assert response.headers["content-type"] == "application/problem+json"
        problem: dict[str, Any] = response.json()
        return problem

    @contextlib.asynccontextmanager
    async def socket(self, path: str, **options: Any) -> AsyncIterator[Socket]:
        async with connect(
            f"{self.url.replace('http', 'ws', 1)}/{path}",
            subprotocols=[Subprotocol("machinehub.v1")],
            max_size=None,
            max_queue=None,  # or a client that does not read takes 10 s to say goodbye
            **options,
        ) as connection:
            yield Socket(connection)


class Socket:
    """A WebSocket that remembers the last snapshot."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.snapshot: dict[str, Any] = {}
        self.seq = 0
        self.seen: list[dict[str, Any]] = []
        # Not id(self): a socket that comes later may have it again.
        self._event_ids = (f"{uuid.uuid4().hex}-{number}" for number in itertools.count(1))

    async def receive(self, timeout_s: float = 60) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(
            await asyncio.wait_for(self.connection.recv(), timeout_s)
        )
        self.seen.append(frame)
        if frame["type"] in ("snapshot", "update"):
            self.snapshot, self.seq = frame["snapshot"], frame["seq"]
        return frame

    async def until(self, kind: str) -> dict[str, Any]:
        """The next frame of a kind; what comes before it is noted in `seen`."""
        while (frame := await self.receive())["type"] != kind:
            pass
        return frame

    async def send_raw(self, frame: object) -> None:
        await self.connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def event(self, event: object, *, event_id: str | None = None) -> dict[str, Any]:
        """Sends an event and returns its ack."""
        event_id = event_id or next(self._event_ids)
        await self.send_raw(
            {
                "type": "event",
                "id": event_id,
                "event": {"type": event} if isinstance(event, str) else event,
            }
        )
        while (frame := await self.until("ack"))["id"] != event_id:
            pass
        return frame

    async def settle(self) -> None:
        """Returns when everything that was sent before has arrived."""
        await self.send_raw({"type": "ping"})
        await self.until("pong")


@contextlib.asynccontextmanager
async def running_hub(
    data: Path, *, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Client]:
    """A hub with one session worker, unless `workers` says otherwise: starting them is most of what
    a test takes.
    """
    hub = Hub(
        Settings(data=data, cache=CACHE, **{"port": free_port(), "workers": 1} | settings),
        clock=clock,
        entropy=Entropy(seed=1) if clock else None,
    )
    await hub.start()
    server = HubServer(hub)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    headers = {"Authorization": f"Bearer {hub.settings.token}"} if hub.settings.token else {}
    try:
        async with httpx.AsyncClient(
            base_url=hub.settings.base_url, timeout=30, headers=headers
        ) as http:
            yield Client(hub, http)
    finally:
        server.should_exit = True
        await serving
        await hub.stop()
