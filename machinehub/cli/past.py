"""`machinehub history, replay, fork`: a session's past."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Annotated, Any, NamedTuple

import typer

from machinehub.cli.common import (
    BROKEN_BUILD,
    DEFAULT_SERVER,
    USAGE,
    AsJson,
    Hub,
    Refused,
    Server,
    SessionArgument,
    TokenOption,
    fail,
    plain,
    print_json,
    progress,
    say,
)
from machinehub.cli.definitions import duration
from machinehub.cli.effects import request_of
from machinehub.clock import pause_about

DAMAGE = ("session_damaged", "image_damaged")
PASSING = ("unavailable", "history_pruned", "rate_limited")
VERIFY_TRIES = 5
VERIFIED_SAID = 100
"""After so many sessions it is said how far a verification is."""
At = Annotated[
    int | None,
    typer.Option(
        "--at", min=1, max=10**15, help="The number of an input; else the last.", show_default=False
    ),
]


def register(app: typer.Typer) -> None:
    for command in (history, replay, verify, fork):
        app.command(command.__name__)(command)


def history(
    session: SessionArgument,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Inputs to show, from the first.")
    ] = 1000,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Print a session's inputs, oldest first: what came, from whom, and what became of it."""
    hub = Hub(server, token)
    compacted_to = hub.read(hub.session_api_path(session)).get("compacted_to")
    if compacted_to is not None:
        progress.print(f"of the inputs up to {compacted_to} some are not kept", style="dim")
    asked = _asked(hub, session, limit)
    for number, entry in enumerate(
        islice(hub.items(hub.session_api_path(session) + "/journal"), limit + 1)
    ):
        if number == limit:
            progress.print(f"and more; see --limit (now {limit})", style="dim")
        elif as_json:
            print_json(entry)
        else:
            at = entry["at"][:19].replace("T", " ")
            say(f"{entry['seq']:>6}  {at}  {_what(entry, asked)}{_from_whom(entry)}")
            if "error" not in entry:
                for effect in asked.made_at.get(entry["seq"], ()):
                    say(f"{'':>8}asks {effect['id']}: {request_of(effect)}")


class _Asked(NamedTuple):
    """What a session asked of the world: by number, and by the input that it was asked at."""

    effects: dict[int, dict[str, Any]]
    made_at: dict[int, list[dict[str, Any]]]


def _asked(hub: Hub, session: str, limit: int) -> _Asked:
    found = list(islice(hub.items(hub.session_api_path(session) + "/effects"), limit))
    made_at: dict[int, list[dict[str, Any]]] = {}
    for each in reversed(found):
        made_at.setdefault(each["seq"], []).append(each)
    return _Asked({each["id"]: each for each in found}, made_at)


def _answer(entry: dict[str, Any], asked: _Asked) -> str:
    """What became of a request."""
    answer, effect = entry["answer"], asked.effects.get(entry["effect"])
    error = answer.get("error")
    what = f"{error['code']}: {error['detail']}" if error else f"{answer['status']}"
    if effect is None:
        return f"answer {entry['effect']}: {what}"
    tries = "" if effect["tries"] < 2 else f", {effect['tries']} tries"
    took = "" if effect["ms"] is None else f" in {effect['ms']} ms{tries}"
    return f"answer {entry['effect']}: {what}{took}"


def _what(entry: dict[str, Any], asked: _Asked) -> str:
    match entry["kind"]:
        case "start":
            what = (
                "start"
                if entry["input"] is None
                else f"start {json.dumps(entry['input'], ensure_ascii=False)}"
            )
        case "timer":
            what = _timer(entry)
        case "answer":
            what = _answer(entry, asked)
        case _:
            what = json.dumps(entry["event"], ensure_ascii=False)
    if "error" in entry:
        detail = entry["error"]["detail"].replace("\n", " ")
        return f"{what}  rejected: {entry['error']['code']}: {detail}"
    if entry.get("taken") is False:
        return f"{what}  nothing takes it"
    return what if entry["changed"] else f"{what}  nothing changed"


def _timer(entry: dict[str, Any]) -> str:
    """Which timer fired: a delay (`after`) of a state, or what was raised with one."""
    cause = entry.get("cause", "")
    after = re.fullmatch(r"xstate\.after\.(.*?)\.(?=[^.])(.*)", cause)
    if after is not None:
        delay = duration(int(after[1])) if after[1].isdecimal() else after[1]
        return f"after {delay} in {after[2]}"
    done = re.fullmatch(r"xstate\.(done|error)\.actor\.(.*)", cause)
    if done is not None:  # an actor by the id that it has, or by the state that invokes it
        return f"{done[1]}({re.sub(r'^[0-9]+[.]', '', done[2])})"
    return f"timer {entry['timer']}" + (f" {cause}" if cause else "")


def _from_whom(entry: dict[str, Any]) -> str:
    """Of an event: the user where there is one, else by what the hub knows the client."""
    sender = entry.get("sender") or {}
    return f"  from {sender.get('user') or sender['id']}" if sender.get("id") else ""


def replay(
    session: SessionArgument,
    at: At = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Fail unless the digests agree with those of the checkpoints."
        ),
    ] = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Compute a session again from its journal and print its snapshot.

    With --verify, exit code 6 when it comes out differently.
    """
    hub = Hub(server, token)
    found = hub.call(
        "POST",
        hub.session_api_path(session) + "/replay" + (f"?at={at}" if at else ""),
        timeout_s=3600,
    )
    if as_json:
        print_json(found)
    else:
        rate = found["inputs"] / max(found["ms"], 0.001) * 1000
        progress.print(
            (
                f"{found['inputs']} input{'' if found['inputs'] == 1 else 's'} replayed in "
                f"{found['ms']:.0f} ms ({rate:,.0f}/s); "
                f"memory {found['digest']} at {found['seq']}"
            ),
            markup=False,
        )
        for checkpoint in found["checkpoints"] if verify else ():
            agrees = checkpoint["stored"] == checkpoint["recomputed"]
            progress.print(
                (
                    f"checkpoint at {checkpoint['seq']}: {checkpoint['stored']} "
                    f"{'agrees' if agrees else 'is not ' + checkpoint['recomputed']}"
                ),
                markup=False,
            )
        print_json(found["snapshot"])
    if verify and not found["verified"]:
        fail("the journal does not come to what was stored, or told", BROKEN_BUILD)
    if verify:
        agree = len(found["checkpoints"])
        progress.print(
            f"verified: the memory agrees with {agree} checkpoint{'' if agree == 1 else 's'}"
            if agree
            else "nothing was stored yet to compare with",
            markup=False,
        )


def verify(
    what: Annotated[
        str, typer.Argument(metavar="[M[/S]]", help="A machine, or one session; else everything.")
    ] = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Compute sessions again from their journals: is every input there, and does the memory agree
    with every checkpoint? Exit code 6 when one does not.
    """
    hub = Hub(server, token)
    machine, slash, session = what.partition("/")
    names = [machine] if machine else [each["name"] for each in hub.items("/api/v1/machines")]
    checked: list[dict[str, Any]] = []
    for name in names:
        path = hub.machine_path(name) + "/sessions"
        found = [session] if slash else (each["id"] for each in hub.items(path))
        for each in found:
            verified = _verified(hub, f"{name}/{each}", is_named=bool(slash))
            if verified is None:
                continue
            checked.append(verified)
            if verified["fault"]:
                progress.print(f"{plain(name)}/{plain(each)}: {verified['fault']}")
            elif len(checked) % VERIFIED_SAID == 0:
                progress.print(f"{len(checked)} sessions agree so far, of {plain(name)} now")
    broken = [each for each in checked if each["fault"]]
    if as_json:
        print_json(checked)
    else:
        inputs = sum(each["inputs"] for each in checked)
        checkpoints = sum(each["checkpoints"] for each in checked)
        say(
            f"{len(checked)} sessions, {inputs} inputs, {checkpoints} checkpoints: "
            + (f"{len(broken)} damaged" if broken else "all agree")
        )
    if broken:
        raise typer.Exit(BROKEN_BUILD)


def _verified(hub: Hub, session: str, *, is_named: bool) -> dict[str, Any] | None:
    """What replaying a session says of it; `fault` is empty for one that is sound. None for one
    that was deleted since it was listed. Raises `Refused` for what is no word about the session.
    """
    for attempt in range(VERIFY_TRIES):
        if attempt:
            pause_about(1)  # its journal was pruned meanwhile, or the hub was too busy
        try:
            found = hub.call("POST", hub.session_api_path(session) + "/replay", timeout_s=3600)
            break
        except Refused as refused:
            code, detail = refused.problem.get("code"), refused.problem.get("detail", "")
            if code in DAMAGE:
                return {"session": session, "inputs": 0, "checkpoints": 0, "fault": str(detail)}
            if code == "no_such_session" and not is_named:
                return None
            if code not in PASSING or attempt == VERIFY_TRIES - 1:
                raise
    wrong = [
        f"the memory at input {each['seq']} was {each['stored']}, and comes to {each['recomputed']}"
        for each in found["checkpoints"]
        if each["stored"] != each["recomputed"]
    ]
    if not found["verified"] and not wrong:
        wrong = ["what the session says of itself is not what its journal comes to"]
    return {
        "session": session,
        "inputs": found["inputs"],
        "checkpoints": len(found["checkpoints"]),
        "fault": "; ".join(wrong),
    }


def fork(
    session: SessionArgument,
    name: Annotated[str, typer.Argument(metavar="NEW", help="The new session's id.")],
    at: At = None,
    effects: Annotated[
        str,
        typer.Option(
            "--effects",
            help="`keep` asks once more for what was waited for then; `drop` does not.",
        ),
    ] = "drop",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Copy a session, as it was after one of its inputs, into a NEW one. Prints its URL."""
    if not name:
        fail("NEW is the id of the new session", USAGE)
    hub = Hub(server, token)
    path = hub.session_api_path(session)
    body = {"session": name, "effects": effects} | ({"at": at} if at else {})
    child = hub.call("POST", path + "/fork", body=body)
    if as_json:
        print_json(child)
        return
    progress.print(f"{plain(name)} is a copy of {plain(session)} after its input {child['seq']}")
    say(hub.server.rstrip("/") + hub.session_path(f"{session.partition('/')[0]}/{name}"))
