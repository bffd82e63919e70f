"""The composition root: the only place that knows concrete classes. Read this to see how the parts
hang together.

client -> uvicorn (edge/) -> admission -> protocols -> session port -> placement -> sandbox workers
                                       -> control   -> catalog, store, forge
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from starlette.routing import Route

from machinehub.clock import Entropy, SystemClock, measured_s, new_node_id
from machinehub.cluster.bus import NatsBus
from machinehub.cluster.node import ClusterNode
from machinehub.control.api import DeployApi
from machinehub.control.app import ControlApp, what_is_asked
from machinehub.control.audit import Audit, AuditApi
from machinehub.control.calendar import Calendar, CalendarApi
from machinehub.control.catalog import Catalog
from machinehub.control.health import Health
from machinehub.control.keys import KeyApi
from machinehub.control.nodes import NodeApi
from machinehub.control.operations import Operations
from machinehub.control.projects import ProjectApi
from machinehub.control.reach import Reach
from machinehub.control.routes import api_routes
from machinehub.control.secrets import SecretApi
from machinehub.control.sessions import SessionApi
from machinehub.edge.admission import Admission
from machinehub.edge.connect_tokens import ConnectTokens
from machinehub.edge.gate import Gate
from machinehub.edge.identity import Identities
from machinehub.edge.quotas import ProjectQuotas
from machinehub.edge.tokens import Tokens
from machinehub.egress.client import Egress
from machinehub.errors import HubError, Unavailable
from machinehub.ids import SessionId
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from machinehub.protocols.hooks.http import Hooks
from machinehub.protocols.native.http import HttpProtocol
from machinehub.protocols.native.websocket import WebSocketProtocol
from machinehub.protocols.sky.config import SkyRegistry
from machinehub.protocols.sky.websocket import SkySockets
from machinehub.session.run.local import LocalSessions
from machinehub.session.run.timekeeping import Timekeeper
from machinehub.settings import Settings, check_can_listen
from machinehub.store.calendar import CalendarStore
from machinehub.store.database import Database
from machinehub.store.engine import open_engine
from machinehub.store.integrity import check_file, look_through
from machinehub.store.keys import KeyStore
from machinehub.store.members import MemberStore
from machinehub.store.nodes import NodeStore, fence_of
from machinehub.store.notes import Notes
from machinehub.store.schema import migrate
from machinehub.store.secrets import SecretStore
from machinehub.store.sessions import SessionStore
from machinehub.store.space import give_back_on
from machinehub.store.store import Store
from machinehub.store.trouble import CLAIM_LOST, FENCED, UNCONFIRMED, unavailable
from machinehub.store.usage import UsageStore
from machinehub.tasks import Tasks
from machinehub.web.page import BASE_PATH, asset, welcome
from machinehub.wiring import check_egress_settings, make_broker, make_secrets
from machinehub.workers.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.routing import BaseRoute
    from starlette.types import Message, Receive, Scope, Send

    from machinehub.clock import Clock
    from machinehub.ids import MachineId
    from machinehub.session.port import Sessions


log = logging.getLogger("machinehub")

MEASURED_WITHIN_S: Final = 2.0
"""Whoever asks for metrics is not held up by a database that does not answer; the gauge keeps what
was counted last.
"""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OPERATIONS: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""What answers also while the hub may not use its database."""


class Face(Protocol):
    """One of the faces that a hub shows: a protocol, or the control plane."""

    def takes(self, scope: Scope) -> bool:
        """Whether a request or a socket is this one's."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in."""
        ...


class Hub:
    """Everything that lives as long as the hub. `start`, then serve `asgi`, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        clock = clock or SystemClock()
        entropy = entropy or Entropy()
        limits = settings.limits
        self._node = new_node_id() if settings.nats_url else None
        self.engine = open_engine(settings.sqlalchemy_url, **self._database_settings())
        self.metrics = Metrics()
        self.logs = MachineLogs(kept=limits.log_lines_kept)
        self.store = Store(self.engine)
        self.pool = self._make_pool(on_progress)
        self.catalog = Catalog(self.store, self.pool, clock, entropy, limits)
        self._database = Database(self.engine)
        self.session_store = SessionStore(self._database, settings.retention, node=self._node)
        self.sessions = self._make_sessions(clock, entropy)
        self.cluster = self._make_cluster(clock, entropy) if self._node is not None else None
        self.on_end: Callable[[], None] = lambda: None
        """Hears that the hub has to end: other nodes took it for dead, or want it to."""
        self.is_fenced = False
        """Whether other nodes took this one for dead."""
        self.keys = KeyStore(self.engine)
        self.audit = Audit(self.keys.audit, clock, days=settings.audit_days)
        self.members = MemberStore(self.engine)
        self.egress = Egress(settings.egress_allowed, ca=settings.egress_ca)
        self.connect_tokens = ConnectTokens(self.members, self.egress, clock)
        self.tokens = Tokens(settings, self.keys, clock, self.connect_tokens)
        self.identities = Identities(self.tokens, self.connect_tokens)
        usage = UsageStore(self.engine)
        self.quotas = ProjectQuotas(self.keys, usage, self.sessions, clock)
        self.admission = Admission(settings, limits, self.tokens, self.identities, clock)
        self.health = Health(
            self.session_store,
            self._database,
            self.metrics,
            folder=self._database.folder,
            refused=self.sessions.journal.failed_lately,
        )
        self.operations = Operations(self.health, self.pool, self.metrics, measure=self._measure)
        notes = Notes(self._database) if self.cluster is None else None
        self._timekeeper = Timekeeper(clock, notes, self.metrics, stepped=self.sessions.time_moved)
        self.calendar = Calendar(
            CalendarStore(self.engine), self.port, clock, is_mine=self._looks_after
        )
        self.secrets = make_secrets(
            settings, SecretStore(self.engine), clock, is_node=self._node is not None
        )
        self.broker = make_broker(self, clock, entropy)
        self.sessions.requests.to = self.broker
        self._tasks = Tasks()
        self._base_path = settings.base_path
        self._faces = self._make_faces(clock, entropy)

    def _database_settings(self) -> dict[str, str]:
        """Of the database's server, for the connections of this hub."""
        if self._node is None:
            return {}
        # A node that is stopped in a transaction must not keep its fence locked.
        return {
            "application_name": f"machinehub node {self._node}",
            "idle_in_transaction_session_timeout": "2000",
        }

    def _make_sessions(self, clock: Clock, entropy: Entropy) -> LocalSessions:
        settings = self.settings
        return LocalSessions(
            self.pool,
            self.catalog,
            self.catalog,
            self.session_store,
            clock,
            entropy,
            settings.limits,
            logs=self.logs,
            metrics=self.metrics,
            expire_after_ms=settings.expire_finished_s * 1000,
            resident_bytes=settings.resident_bytes,
        )

    def _make_cluster(self, clock: Clock, entropy: Entropy) -> ClusterNode:
        settings = self.settings
        credentials, ca = settings.nats_credentials, settings.nats_ca
        assert self._node is not None
        cluster = ClusterNode(
            self._node,
            NatsBus(
                settings.nats_url,
                credentials=Path(credentials) if credentials else None,
                ca=Path(ca) if ca else None,
            ),
            self.sessions,
            self.session_store,
            NodeStore(self._database),
            self.logs,
            clock,
            entropy,
            settings.limits,
            capacity=settings.worker_count,
            turns=lambda: self.metrics.turns.count,
            machines=self.store,
            machine_changed=self.catalog.forget_here,
        )
        self.catalog.on_change = cluster.machine_changed_here
        cluster.membership.on_fenced = self._fenced
        cluster.membership.on_drain = self._told_to_drain
        return cluster

    @property
    def port(self) -> Sessions:
        """What protocols and the control plane use sessions by."""
        return self.sessions if self.cluster is None else self.cluster.sessions

    def _make_pool(self, on_progress: Callable[[str], None] | None) -> WorkerPool:
        settings, limits = self.settings, self.settings.limits
        return WorkerPool(
            count=settings.worker_count,
            cache=settings.cache,
            worker_bytes_max=limits.worker_bytes,
            forge_bytes_max=limits.forge_bytes,
            fuel=settings.fuel,
            isolated_max=limits.isolated_machines if settings.isolate_machines else 0,
            on_ended=lambda kind, why: self.metrics.worker_ends.labels(kind, why).inc(),
            on_progress=on_progress,
        )

    def _make_faces(self, clock: Clock, entropy: Entropy) -> tuple[Face, ...]:
        """What the hub is to those outside, by scope: the first that takes one has it."""
        limits, base_url = self.settings.limits, self.settings.base_url
        gate = Gate(self.catalog, self.connect_tokens.still_counts, self.quotas)
        identify, watch = self.admission.identify, self.identities.watch
        sessions, catalog, metrics = self.port, self.catalog, self.metrics
        who = gate, identify, watch
        return (
            SkySockets(sessions, catalog, clock, entropy, limits, metrics, *who),
            WebSocketProtocol(sessions, clock, limits, metrics, *who),
            ControlApp(self._make_routes(clock, entropy), metrics),
            SkyRegistry(catalog, self.store.files, gate, limits),
            Hooks(sessions, catalog, self.secrets, clock, limits, metrics),
            HttpProtocol(sessions, catalog, gate, limits, metrics, base_url=base_url, watch=watch),
        )

    def _make_routes(self, clock: Clock, entropy: Entropy) -> list[BaseRoute]:
        """Of the control plane."""
        limits, base_url, audit = self.settings.limits, self.settings.base_url, self.audit
        reach, refresh = Reach(self.store, self.keys), self.tokens.refresh
        api = DeployApi(
            self.catalog,
            self.store,
            self.port,
            audit,
            reach,
            self.logs if self.cluster is None else self.cluster.logs,
            self.metrics,
            quotas=self.quotas,
            clock=clock,
            limits=limits,
            base_url=base_url,
            watch=self.identities.watch,
            is_open=lambda: self.admission.is_open,
            is_stopping=lambda: self.operations.stopping,
        )
        sessions = SessionApi(self.store, reach, self.port, audit, entropy, limits)
        projects = ProjectApi(self.keys, reach, audit, self.quotas, clock, entropy, limits, refresh)
        common = reach, audit, clock, entropy, limits, refresh
        keys = KeyApi(self.keys, self.members, self.store, *common)
        audits = AuditApi(self.keys.audit, reach, limits)
        members = self.cluster.membership if self.cluster is not None else None
        nodes = NodeApi(members, NodeStore(self._database).tell_to_drain, audit)
        calendar = CalendarApi(CalendarStore(self.engine), reach)
        secrets = SecretApi(self.secrets, reach, audit)
        apis = api, sessions, projects, keys, audits, nodes, calendar, secrets
        calls = [call for each in apis for call in each.calls()]
        return [
            *self.operations.routes(),
            api_routes(calls, whoami=projects.whoami, base_url=base_url, limits=limits),
            Route("/", welcome, methods=["GET"]),
            Route("/assets/{name}", asset, methods=["GET"]),
        ]

    @property
    def accepting(self) -> bool:
        """Whether connections are accepted: False while there are no descriptors for more."""
        return self.operations.accepting

    @accepting.setter
    def accepting(self, are: bool) -> None:
        self.operations.accepting = are

    async def start(self) -> None:
        """Claims and migrates the database, starts the workers. A start that fails leaves nothing
        open.

        Raises `BadSettings` when the hub must not listen like this, and `Unavailable`.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self._check_cache()
        check_egress_settings(self.settings)
        if self.cluster is None:
            await self._database.claim(self._claim_changed)
        else:
            await self._database.share(self.cluster.record.lock)
        await self._check_file()
        await migrate(self.engine, backup=self.settings.backup_before_upgrade)
        self._database.check_file()
        valid = await self.keys.valid_tokens()
        has_tokens = any(token.publishable is None for token in valid.values())
        check_can_listen(self.settings, has_tokens=has_tokens)
        await self.tokens.start()
        await self.pool.start(self.sessions)
        await self.catalog.keep_engine()
        await self._timekeeper.start()
        await self._join()
        await self.sessions.start()
        self.health.start()
        self.calendar.start()
        self.broker.start()
        self._tasks.spawn(give_back_on(self._database))
        self._tasks.spawn(self.audit.prune_on())
        self._tasks.spawn(self.quotas.measure_on())

    async def _join(self) -> None:
        """From now on this hub is one of the nodes that share its database."""
        if self.cluster is None:
            return
        await self.cluster.start()
        self._database.fence_by(fence_of(self.cluster.node, self._fenced))

    def _looks_after(self, machine: MachineId, name: str) -> bool:
        """Whether an entry of a calendar is this hub's to send."""
        return self.cluster is None or self.cluster.looks_after(machine, SessionId(f"cron {name}"))

    def _fenced(self) -> None:
        """The other nodes took this one for dead, and have its sessions."""
        if self.is_fenced:
            return
        self.is_fenced = True
        log.critical("the other nodes took this one for dead, and have its sessions: it ends")
        self.broker.stop()
        asyncio.get_running_loop().call_soon(self.sessions.suspend, unavailable(FENCED))
        self.on_end()

    def _told_to_drain(self) -> None:
        self.on_end()

    @property
    def _may_serve(self) -> bool:
        """Whether what this hub remembers of sessions is true."""
        if self.cluster is not None and not self.cluster.membership.is_confirmed:
            return False
        return self._database.has_claim and not self.is_fenced

    async def _measure(self) -> None:
        """Sets the gauges that nobody sets when something happens."""
        await self.sessions.gauges.measure()
        self.metrics.effects_in_flight.set(self.broker.in_flight)
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(MEASURED_WITHIN_S):
                self.metrics.effects_waiting.set(await self.session_store.effects.count_waiting())
        if self.cluster is not None:
            self.cluster.measure(self.metrics)

    async def hand_over(self) -> None:
        """Before the hub stops: other nodes have its sessions from now on."""
        self.operations.draining = True
        if self.cluster is not None and not self.is_fenced:
            await self.cluster.drain()

    def _check_cache(self) -> None:
        cache = self.settings.cache
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK):
            log.warning("%s cannot be written: each start compiles anew, for ten seconds", cache)

    async def _check_file(self) -> None:
        path = self._database.path
        if path is not None and not await check_file(path):
            self._tasks.spawn(look_through(path, self._database))

    def _claim_changed(self, held: bool) -> None:
        """Another hub may use the database meanwhile: what is in memory counts for nothing."""
        if held:
            self.sessions.resume()
        else:
            self.broker.forget_all()
            self.sessions.suspend(unavailable(CLAIM_LOST))

    async def stop(self) -> None:
        self._tasks.stop()
        self.calendar.stop()
        self.broker.stop()
        self.health.stop()
        self.tokens.stop()
        if not self.is_fenced:
            with contextlib.suppress(HubError):
                await self.session_store.effects.let_go()
            await self.sessions.freeze_all()
        await self.sessions.stop()
        await self.egress.close()
        await self._timekeeper.stop()
        if self.cluster is not None:
            await self.cluster.stop()
        await self.pool.stop()
        await self._database.close()
        await self.store.close()

    def say_goodbye(self) -> None:
        """The hub is about to stop: it is not ready any more, and everybody is told to come
        back.
        """
        self.operations.draining = self.operations.stopping = True
        if self.cluster is not None:
            self.cluster.say_goodbye("the hub is going away")
        self.sessions.say_goodbye("the hub is going away")

    def _enter_base_path(self, scope: Scope) -> None:
        """Takes the public URL's path off the path that is asked for, where a proxy left it."""
        base = self._base_path
        if not base:
            return
        scope[BASE_PATH] = base
        if scope["path"] == base or scope["path"].startswith(base + "/"):
            scope["path"] = scope["path"][len(base) :] or "/"
            # The raw path may spell the same with other characters percent-encoded.
            raw: bytes = scope["raw_path"]
            behind = raw.split(b"/", base.count("/") + 1)[base.count("/") + 1 :]
            scope["raw_path"] = b"/" + b"".join(behind)

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What uvicorn calls for every request and every socket."""
        self._enter_base_path(scope)
        face = next(face for face in self._faces if face.takes(scope))
        try:
            if not self._may_serve and scope["path"] not in OPERATIONS:
                raise unavailable(CLAIM_LOST if self.cluster is None else UNCONFIRMED)
            leave = await self.admission.enter(scope)
        except HubError as error:
            self.metrics.refused.labels(code=error.code).inc()
            await face.refuse(error, scope, receive, send)
            return
        if scope["type"] == "http":
            send = self._timed(scope, send)
        try:
            await face(scope, receive, send)
        finally:
            leave()

    def _timed(self, scope: Scope, send: Send) -> Send:
        """`send`, which notes how long the head of the answer took."""
        began_s, method, path = measured_s(), scope["method"], scope["path"]

        async def timed(message: Message) -> None:
            if message["type"] == "http.response.start":
                labels = method if method in METHODS else "other", what_is_asked(path)
                self.metrics.request.labels(*labels).observe(measured_s() - began_s)
            await send(message)

        return timed
