"""`POST /{machine}/-/hooks/{name}`: the world tells a session of something.

Decides: what of a machine's webhooks a request means. It is answered when the event is committed;
one that comes again is known by its id, and answered as before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from machinehub.edge.addresses import check_session_id, decode_part
from machinehub.edge.problem import on_unexpected, problem
from machinehub.edge.requests import read_body
from machinehub.effects.hooks import event_of, session_of, verify, webhooks_of
from machinehub.errors import (
    HubError,
    IdempotencyMismatch,
    MethodNotAllowed,
    NotFound,
    Unavailable,
    error_of,
)
from machinehub.ids import EventId, MachineId
from machinehub.principal import Principal, Standing
from machinehub.session.decide.identity import Identity
from machinehub.session.port import Address, Visitor

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from machinehub.clock import Clock
    from machinehub.effects.outside import Vault
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.model import Machine, Version
    from machinehub.session.port import Sessions

_PATH: Final = re.compile(rb"/([A-Za-z0-9]{6,32})/(?:-|%2[dD])/hooks/([^/]{1,200})(?:/([^/]*))?")


class HookTarget(Protocol):
    """The version of a machine that is active."""

    @property
    def machine(self) -> Machine: ...
    @property
    def version(self) -> Version: ...


class HookMachines(Protocol):
    async def target(self, machine_id: MachineId, number: int | None) -> HookTarget:
        """Raises `NotFound`."""
        ...


class Hooks:
    """The ASGI callable."""

    def __init__(
        self,
        sessions: Sessions,
        machines: HookMachines,
        vault: Vault,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._sessions = sessions
        self._machines = machines
        self._vault = vault
        self._clock = clock
        self._limits = limits
        self._metrics = metrics

    def takes(self, scope: Scope) -> bool:
        """Whether a request is a webhook's."""
        return scope["type"] == "http" and _PATH.fullmatch(scope["raw_path"]) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if request.method != "POST":
                raise MethodNotAllowed("method_not_allowed", "a webhook takes POST")
            response = await self._deliver(request)
            self._metrics.hooks.labels(outcome="accepted").inc()
        except HubError as error:
            self._metrics.hooks.labels(outcome=error.code).inc()
            response = problem(error)
        except Exception as error:  # noqa: BLE001 - whoever calls gets an answer
            response = await on_unexpected(request, error)
        await response(scope, receive, send)

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in."""
        await problem(error)(scope, receive, send)

    async def _deliver(self, request: Request) -> Response:
        """Raises `HubError`."""
        found = _PATH.fullmatch(request.scope["raw_path"])
        assert found is not None
        machine_id, name = MachineId(found[1].decode()), decode_part(found[2])
        target = await self._machines.target(machine_id, None)
        webhooks = webhooks_of(target.version.definition)
        webhook = next((each for each in webhooks if each.name == name), None)
        if webhook is None:
            raise NotFound("no_such_webhook", "the machine has no webhook of this name")
        body = await read_body(request, bytes_max=self._limits.event_bytes)
        headers = {key.lower(): value for key, value in request.headers.items()}
        secrets = await self._vault.reveal(target.machine.project, [webhook.secret])
        if webhook.secret not in secrets:
            raise Unavailable(
                "no_such_secret", f"the project has no secret {webhook.secret}: set it first"
            )
        delivery = verify(
            webhook,
            headers,
            body,
            secrets[webhook.secret].value,
            now_ms=self._clock.now_ms(),
            depth_max=self._limits.event_depth - 1,
        )
        named = decode_part(found[3]) if found[3] else session_of(webhook, delivery.payload)
        session = check_session_id(named, chars_max=self._limits.session_id_chars)
        who = Identity(f"webhook.{name}", is_hub=True)
        try:
            answered = await self._sessions.send(
                Address(machine_id, session),
                event_of(webhook, headers, body),
                Visitor(Principal(Standing.LOCAL), identity=who),
                event_id=EventId(delivery.id),
            )
        except IdempotencyMismatch:
            # Its sender says that it is the same one; some tell more when they tell it again.
            return Response(b'{"seq":null}', media_type="application/json")
        if answered.settled.error is not None:
            raise error_of(answered.settled.error)
        return Response(b'{"seq":%d}' % answered.settled.seq, media_type="application/json")
