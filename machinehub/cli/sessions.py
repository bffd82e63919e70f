"""`machinehub sessions, send, watch, logs`: talking to sessions."""

from __future__ import annotations

import base64
import json
import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from machinehub.cli.common import (
    CONFLICT,
    DEFAULT_SERVER,
    FAILED,
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
    path_part,
    plain_text,
    print_json,
    progress,
    read_json,
    say,
    table,
)
from machinehub.cli.definitions import events_of
from machinehub.cli.identity import As, client_key
from machinehub.clock import pause_about, timestamp

if TYPE_CHECKING:
    from websockets.exceptions import ConnectionClosed


def register(app: typer.Typer) -> None:
    for command in (sessions, restart, send, watch, logs):
        app.command(command.__name__)(command)


def sessions(
    machine: Annotated[
        str,
        typer.Argument(metavar="[MACHINE[/SESSION]]", help="A machine, or one session of it."),
    ] = "",
    busiest: Annotated[
        bool,
        typer.Option("--busiest", help="The hub's, by how many turns they had in a minute."),
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them all.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """List a machine's sessions, or delete them."""
    hub = Hub(server, token)
    if busiest == bool(machine) or (busiest and delete):
        fail("name a machine or one session of it, or say --busiest", USAGE)
    if busiest:
        _show_busiest(hub, as_json=as_json)
        return
    if delete:
        _delete_sessions(hub, machine, yes=yes)
        return
    if "/" in machine:
        session = hub.read(hub.session_api_path(machine))
        print_json(session) if as_json else _show_sessions([session])
        return
    found = list(hub.items(hub.machine_path(machine) + "/sessions"))
    print_json(found) if as_json else _show_sessions(found)


def _show_busiest(hub: Hub, *, as_json: bool) -> None:
    found = hub.read("/api/v1/busiest")["data"]
    if as_json:
        print_json(found)
        return
    rows = [[f"{each['machine']['name']}/{each['session']}", str(each["turns"])] for each in found]
    table(["SESSION", "TURNS A MINUTE"], rows)


def _delete_sessions(hub: Hub, machine: str, *, yes: bool) -> None:
    if "/" in machine:
        paths = {machine.partition("/")[2]: hub.session_api_path(machine)}
    else:
        of = hub.machine_path(machine) + "/sessions"
        paths = {each["id"]: f"{of}/{path_part(each['id'])}" for each in hub.items(of)}
    if paths and not yes:
        if not sys.stdin.isatty():
            fail("deleting cannot be undone; say --yes", USAGE)
        what = next(iter(paths)) if len(paths) == 1 else f"{len(paths)} sessions"
        typer.confirm(f"Delete {what} of {machine.partition('/')[0]}?", abort=True, err=True)
    for path in paths.values():
        hub.call("DELETE", path)
    count = len(paths)
    progress.print(f"{count} session{'' if count == 1 else 's'} deleted", markup=False)


def restart(
    session: SessionArgument,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Start a session anew, with the input that it began with, on the machine's active version.

    What it was is deleted; whoever is connected stays. MACHINE@VERSION/SESSION names a version.
    """
    hub = Hub(server, token)
    machine, _, name = session.partition("/")
    number = machine.partition("@")[2]
    if number and not number.isdecimal():
        fail(f"{machine!r} is not MACHINE or MACHINE@VERSION", USAGE)
    body = {"version": int(number)} if number else {}
    answer = hub.call("POST", hub.session_api_path(session) + "/restart", body=body)
    if as_json:
        print_json(answer)
        return
    progress.print(f"{name}: started anew on version {answer['version']}", markup=False)
    print_json(answer["snapshot"])


def _show_sessions(found: list[dict[str, Any]]) -> None:
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
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail (1) when nothing takes the event.")
    ] = False,
    sent_as: As = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Send EVENT and print the snapshot after it."""
    try:
        body: Any = json.loads(event, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        if event[:1] in '{["' or event in ("NaN", "Infinity", "-Infinity"):
            fail(f"the event is not JSON ({error}): {event[:200]}", USAGE)
        body = {"type": event}
    hub = Hub(server, token)
    path = hub.session_path(session)
    key = {"Machinehub-Client": client_key(sent_as)}
    answer = hub.call("POST", path, body=body, headers=key)
    print_json(answer if as_json else answer["snapshot"])
    if answer.get("taken") is False:
        why = _why_not_taken(hub, path, answer["snapshot"], str(body.get("type", "")))
        progress.print(why, markup=False)
        if strict:
            raise typer.Exit(FAILED)


def _why_not_taken(hub: Hub, path: str, snapshot: dict[str, Any], sent: str) -> str:
    """What the machine would take in this state instead, guards aside."""
    version = hub.read(path)["version"]
    machine = path.split("/")[1].partition("@")[0]
    definition = hub.read(f"/{machine}@{version}")["definition"]
    known = events_of(definition, snapshot.get("value"))
    if sent in known:
        return f"no transition for {plain_text(sent)} was taken: its guards said no"
    takes = ", ".join(known)
    return f"nothing takes this event here; it takes: {plain_text(takes) or 'none'}"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is more than a number can be")
    return value


def watch(
    session: SessionArgument,
    watched_as: As = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Print a session's snapshots as they change, and what it emits. Ends with Ctrl-C."""
    from websockets.exceptions import ConnectionClosed, InvalidHandshake
    from websockets.sync.client import connect

    from machinehub.protocols.native.frames import SUBPROTOCOL
    from machinehub.protocols.native.queries import KEY_PROTOCOL

    hub = Hub(server, token)
    path = hub.session_path(session)
    key = client_key(watched_as).encode()
    who = KEY_PROTOCOL + base64.urlsafe_b64encode(key).decode().rstrip("=")
    url = hub.server.replace("http", "ws", 1) + path
    delay_s = 0.5
    while True:
        try:
            with connect(url, subprotocols=[SUBPROTOCOL, who], max_size=None) as socket:  # type: ignore[list-item]
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
            progress.print(f"        {frame['count']} here", style="dim")
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
        at = timestamp(line["at_ms"])[:23].replace("T", " ")
        text = line["text"].replace("\n", "\n    ")
        say(f"{at}  {line['level']:<5}  {line['session']}  {text}")
