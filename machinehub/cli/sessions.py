"""`machinehub sessions, send, watch, logs`: talking to sessions."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from machinehub.cli.common import (
    CONFLICT,
    DEFAULT_SERVER,
    NOT_FOUND,
    UNAUTHORISED,
    USAGE,
    AsJson,
    Hub,
    MachineArgument,
    Server,
    SessionArgument,
    TokenOption,
    fail,
    print_json,
    progress,
    read_json,
    say,
    table,
)
from machinehub.clock import pause_about, time_of_day

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed


def register(app: typer.Typer) -> None:
    for command in (sessions, send, watch, logs):
        app.command(command.__name__)(command)


def sessions(
    machine: MachineArgument,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """List a machine's sessions."""
    hub = Hub(server, token)
    found = list(hub.items(hub.machine_path(machine) + "/sessions"))
    if as_json:
        print_json(found)
        return
    table(
        ["SESSION", "VERSION", "SEQ", "CONNECTIONS", "FINISHED"],
        (
            [
                s["id"],
                str(s["version"]),
                str(s["seq"]),
                str(s["connections"]),
                "yes" if s["finished"] else "",
            ]
            for s in found
        ),
    )


def send(
    session: SessionArgument,
    event: Annotated[str, typer.Argument(help="The event as JSON, or just its type.")],
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Send EVENT and print the snapshot after it."""
    try:
        body: Any = json.loads(event, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError):
        if event[:1] in '{["' or event in ("NaN", "Infinity", "-Infinity"):
            fail(f"the event is not JSON: {event[:200]}", USAGE)
        body = {"type": event}
    hub = Hub(server, token)
    answer = hub.call("POST", hub.session_path(session), body=body)
    print_json(answer if as_json else answer["snapshot"])


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is more than a number can be")
    return value


def watch(
    session: SessionArgument,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Print a session's snapshots as they change, and what it emits. Ends with Ctrl-C."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake
    from websockets.sync.client import connect

    from machinehub.protocols.native.frames import SUBPROTOCOL

    hub = Hub(server, token)
    url = server.rstrip("/").replace("http", "ws", 1) + hub.session_path(session)
    delay_s = 0.5
    while True:
        try:
            with connect(url, subprotocols=[SUBPROTOCOL], max_size=None) as socket:  # type: ignore[list-item]
                delay_s = 0.5
                for message in socket:
                    _show(read_json(str(message)), as_json=as_json)
        except ConnectionClosed as closed:
            _end_unless_worth_trying(closed)
        except BrokenPipeError:
            raise  # whoever read our output has gone
        except (OSError, InvalidHandshake) as error:
            progress.print(f"not connected ({error}); trying again", markup=False)
        pause_about(delay_s)
        delay_s = min(delay_s * 2, 10)


def _end_unless_worth_trying(closed: ConnectionClosed) -> None:
    code = closed.rcvd.code if closed.rcvd else 1006
    reason = closed.rcvd.reason if closed.rcvd else "the connection was lost"
    if code == 4004:
        fail(reason, NOT_FOUND)
    if code in (1008, 4008):
        fail(reason, CONFLICT)
    if code in (4001, 4003):
        fail(reason, UNAUTHORISED)
    progress.print(f"disconnected ({reason}); connecting again", markup=False)


def _show(frame: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(frame)
        return
    match frame["type"]:
        case "snapshot" | "update":
            snapshot = frame["snapshot"]
            value, context = snapshot.get("value"), snapshot.get("context")
            say(
                f"{frame['seq']:>6}  {value if isinstance(value, str) else json.dumps(value)}  "
                f"{json.dumps(context, ensure_ascii=False)}"
            )
        case "emitted":
            say(f"{frame['seq']:>6}  emitted {json.dumps(frame['event'], ensure_ascii=False)}")
        case "presence":
            progress.print(f"{frame['count']} here", style="dim")
        case "error":
            progress.print(f"{frame['code']}: {frame['detail']}", markup=False)


def logs(
    machine: MachineArgument,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on printing lines as they come.")
    ] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Print what a machine logged, and its rejected events."""
    hub = Hub(server, token)
    path = hub.machine_path(machine) + "/logs"
    if not follow:
        for line in hub.read(path)["data"]:
            _show_line(line, as_json=as_json)
        return
    for line in hub.follow(path):
        _show_line(line, as_json=as_json)


def _show_line(line: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(line)
    else:
        at = time_of_day(line["at_ms"])
        say(f"{at}  {line['level']:<5}  {line['session']}  {line['text']}")
