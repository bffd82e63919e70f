"""What the command `xstate sky` asks of a hub: which machine a URL is, and the machine as a module.

It gets the URL that stands in an app's source, follows a redirect with the status 307 to one with
the query `actorId`, and then asks `/registry/api/sky/actor-config` of the same origin, with the
app's key as a bearer token.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from machinehub.edge.addresses import read_url
from machinehub.edge.admission import principal_of
from machinehub.edge.identity import shown_in
from machinehub.errors import BadRequest, Conflict, Forbidden, HubError, Unauthorised
from machinehub.principal import Standing
from machinehub.protocols.sky.rooms import actor_id, read_actor
from machinehub.protocols.sky.source import Machine, module_of
from machinehub.web.page import BASE_PATH

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from machinehub.edge.gate import Gate
    from machinehub.ids import MachineId
    from machinehub.limits import Limits
    from machinehub.protocols.sky.connection import Machines

CONFIG_PATH: Final = "/registry/api/sky/actor-config"
CLI_AGENT: Final = "node-fetch"
"""The command is known by it: to everybody else a machine's URL is its page, or its definition."""
_MACHINE: Final = re.compile(rb"/[A-Za-z0-9]{6,32}(?:(?:@|%40)[0-9]{1,9})?")


class SkyRegistry:
    """The ASGI callable for the requests of the command `xstate sky`."""

    def __init__(
        self,
        machines: Machines,
        files: Callable[[MachineId, int], Awaitable[dict[str, str]]],
        gate: Gate,
        limits: Limits,
    ) -> None:
        """`files` gives a version's source, by path."""
        self._machines = machines
        self._files = files
        self._gate = gate
        self._limits = limits

    def takes(self, scope: Scope) -> bool:
        """Whether a request is this protocol's."""
        if scope["type"] != "http" or scope["method"] != "GET":
            return False
        return scope["path"] == CONFIG_PATH or _asks_what_it_is(scope)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            if scope["path"] == CONFIG_PATH:
                response: Response = await self._config(request)
            else:
                response = await self._redirect(request)
        except HubError as error:
            response = _refusal(error)
        await response(scope, receive, send)

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in."""
        await _refusal(error)(scope, receive, send)

    async def _redirect(self, request: Request) -> Response:
        """Raises `HubError`."""
        url = read_url(request.scope["raw_path"], session_chars_max=self._limits.session_id_chars)
        actor: str = url.machine
        # The command shows its key later: which versions a private machine has, it hears then.
        with contextlib.suppress(Unauthorised):
            await self._gate.look(principal_of(request.scope), url.machine)
            target = await self._machines.target(url.machine, url.version)
            actor = actor_id(url.machine, target.version.number)
        path = f"{request.scope.get(BASE_PATH, '')}/{url.machine}"
        return RedirectResponse(f"{path}?actorId={actor}", status_code=307)

    async def _config(self, request: Request) -> Response:
        """Raises `HubError`."""
        asked = request.query_params.get("actorId")
        if not asked:
            raise BadRequest("bad_actor_id", "the query has no actorId")
        actor = read_actor(asked)
        principal = principal_of(request.scope)
        if principal.standing is Standing.ANONYMOUS:
            raise Unauthorised(
                "unauthorised",
                "an API key is wanted: a publishable key of the machine's project"
                " (machinehub keys create)",
            )
        machine = await self._gate.look(principal, actor.machine)
        version = (await self._machines.target(actor.machine, actor.version)).version
        if version.definition.get("view"):
            raise Forbidden(
                "forbidden", "the machine says itself what each member sees: it has no replicas"
            )
        if version.entry.endswith(".wasm"):
            raise Conflict("not_persistable", "a WASM module has no source that XState could run")
        files = await self._files(actor.machine, version.number)
        made = Machine(machine.name, version.number, version.entry, files, version.definition)
        try:
            text = await asyncio.to_thread(module_of, made)
        except RecursionError:
            raise Conflict("not_persistable", "the machine nests too deeply to be shown") from None
        answer: dict[str, Any] = {
            "actorId": actor_id(actor.machine, version.number),
            "configString": text,
            "prettyConfigString": text,
            "config": {},
            "implementationString": "",
        }
        return JSONResponse(answer, headers={"Cache-Control": "no-store"})


def _asks_what_it_is(scope: Scope) -> bool:
    """Whether the command follows the URL of a machine."""
    if not _MACHINE.fullmatch(scope["raw_path"]) or b"actorId=" in scope["query_string"]:
        return False
    if shown_in(scope["headers"], scope["query_string"]):
        return False  # the command shows nothing yet
    head = Headers(scope=scope)
    return head.get("user-agent", "").startswith(CLI_AGENT) and head.get("accept") in (None, "*/*")


def _refusal(error: HubError) -> Response:
    """As the command prints it."""
    return JSONResponse({"error": f"{error.detail} ({error.code})"}, error.status)
