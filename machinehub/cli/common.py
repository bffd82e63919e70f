"""What all commands share: talking to a hub, exit codes, output.

Data goes to stdout, progress and errors to stderr. Exit codes: 0 ok, 1 failed, 2 usage, 3 not
authorised, 4 not found, 5 conflict or limit, 6 the machine does not build, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from machinehub.cli.known import resolved

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import httpx

    from machinehub.errors import HubError

OK, FAILED, USAGE, UNAUTHORISED, NOT_FOUND, CONFLICT, BROKEN_BUILD, INTERRUPTED = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    130,
)

progress = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

Server = Annotated[
    str,
    typer.Option("--server", envvar="MACHINEHUB_SERVER", help="The hub's URL, or a login's name."),
]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token", envvar="MACHINEHUB_TOKEN", help="A token of the hub.", show_default=False
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="The hub's data folder. [env MACHINEHUB_DATA, default ./.machinehub]",
        show_default=False,
    ),
]
Expires = Annotated[
    str,
    typer.Option(
        "--expires", metavar="TIME", help="When it ends, as in 30d or 12h.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
MachineArgument = Annotated[str, typer.Argument(metavar="MACHINE", help="A machine's id or name.")]
SessionArgument = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE/SESSION", help="A machine's id or name, a slash, and a session's id."
    ),
]

_OF_PROJECTS = ("/api/v1/machines", "/api/v1/deployments", "/api/v1/audit")
DEFAULT_SERVER = "http://127.0.0.1:8787"


def fail(message: str, code: int = FAILED) -> NoReturn:
    progress.print(f"[red]error:[/red] {plain(message)}")
    raise typer.Exit(code)


class Compiling:
    """The progress bar of a first start, when the engine and the bundler are compiled.

    `begun` is called for each part.

    How long compiling takes is not known before it ends, so the bar moves without saying how far.
    """

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("compiling {task.description} (once, cached afterwards)"),
            BarColumn(),
            TimeElapsedColumn(),
            console=progress,
            transient=True,
        )
        self._parts: set[str] = set()

    def begun(self, part: str) -> None:
        if part in self._parts:
            return
        self._parts.add(part)
        if progress.is_terminal:
            self._bar.start()
            self._bar.add_task(part, total=None)
        else:
            progress.print(f"compiling {part} (once, cached afterwards)")

    def ended(self) -> None:
        self._bar.stop()


def read_json(text: str) -> Any:
    """JSON as hubs write it.

    A number beyond what floats can hold stays as the text that it is, since no JSON could say it
    again.
    """
    return json.loads(
        text, parse_float=lambda number: value if math.isfinite(value := float(number)) else number
    )


def plain(text: str) -> str:
    """Text from elsewhere: no markup of ours, no control characters of theirs."""
    return plain_text(text).replace("[", "\\[")


def print_json(value: Any) -> None:
    """One line, flushed: it may go into a pipe that somebody watches.

    ASCII only, so that nothing in it moves a cursor.
    """
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def say(text: str) -> None:
    """A line of data. Control characters that a machine put into a name do nothing to the
    terminal.
    """
    sys.stdout.write(plain_text(text) + "\n")
    sys.stdout.flush()


def plain_text(text: str) -> str:
    """Text from elsewhere, without control characters."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def table(headings: list[str], rows: Iterable[list[str]]) -> None:
    """Columns padded with spaces: for people, and for `awk`."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def path_part(name: str) -> str:
    """A session's id or a project's name as a segment of a path. Two of them would mean another
    path to everything that handles URLs, unless their dots are written out.
    """
    return "%2E" * len(name) if name in (".", "..") else quote(name, safe="")


def lasting_s(text: str) -> int:
    """What `--expires` says, in seconds. Ends the command for what is no time."""
    found = re.fullmatch("([1-9][0-9]{0,4})([dh])", text)
    if found is None:
        fail(f"{text!r} is no time: say 30d, or 12h", USAGE)
    return int(found[1]) * {"d": 24, "h": 1}[found[2]] * 3600


def untrusted(server: str, error: str) -> str:
    """What is said of a certificate that is not trusted here."""
    why = error.partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
    return (
        f"the certificate of {server} is not trusted here: {why or error}. SSL_CERT_FILE names a "
        "file of other authorities."
    )


def _in_project(path: str) -> str:
    """A path of the API, with the project that `MACHINEHUB_PROJECT` names."""
    project = os.environ.get("MACHINEHUB_PROJECT", "")
    if not project or not path.startswith(_OF_PROJECTS):
        return path
    return f"{path}{'&' if '?' in path else '?'}project={quote(project, safe='')}"


@dataclass(frozen=True, slots=True)
class Hub:
    """A hub over HTTP. Every failure ends the command with its message and exit code."""

    server: str
    """Its URL; or, when it is made, the name of a login."""
    token: str

    def __post_init__(self) -> None:
        found = resolved(self.server, self.token)
        object.__setattr__(self, "server", found.url.rstrip("/"))
        object.__setattr__(self, "token", found.token)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 90,
    ) -> Any:
        """The decoded answer; None for an empty one."""
        sent = dict(headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        import httpx  # here: half of the commands never talk to a hub, and should start fast

        url = self.server + _in_project(path)
        with self._reached():
            response = httpx.request(method, url, json=body, headers=sent, timeout=timeout_s)
        if response.is_success:
            return read_json(response.text) if response.content else None
        raise Refused.of(response)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Ends the command when the hub is not reached, or is lost."""
        import httpx

        try:
            yield
        except httpx.InvalidURL:
            fail(f"{self.server!r} is not a URL", USAGE)
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                fail(untrusted(self.server, str(error)))
            fail(
                f"no hub answers at {self.server}. Start one with `machinehub serve`, or name "
                "another with --server."
            )
        except httpx.HTTPError as error:
            fail(f"{self.server}: {error or type(error).__name__}")

    def follow(self, path: str) -> Iterator[Any]:
        """What a stream of server-sent events carries, until it ends."""
        import httpx

        headers = {"Accept": "text/event-stream"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        url = self.server + _in_project(path)
        waits = httpx.Timeout(10, read=None)  # between two lines a machine may be silent for ever
        with self._reached(), httpx.stream("GET", url, headers=headers, timeout=waits) as response:
            if not response.is_success:
                response.read()
                raise Refused.of(response)
            for text in response.iter_lines():
                if text.startswith("data: "):
                    yield read_json(text.removeprefix("data: "))

    def read(self, path: str) -> Any:
        return self.call("GET", path, headers={"Accept": "application/json"})

    def answers(self) -> bool:
        """Whether a hub is there, and ready. Ends no command."""
        import httpx

        try:
            return httpx.get(self.server.rstrip("/") + "/readyz", timeout=10).is_success
        except (httpx.HTTPError, httpx.InvalidURL):
            return False

    def items(self, path: str) -> Iterator[dict[str, Any]]:
        """The items of a list, page after page as they are needed."""
        cursor = ""
        while True:
            answer = self.read(f"{path}?limit=500{cursor}")
            yield from answer["data"]
            if answer["next"] is None:
                return
            cursor = f"&cursor={quote(answer['next'])}"

    def machine_path(self, machine: str) -> str:
        return f"/api/v1/machines/{quote(machine, safe='')}"

    def session_path(self, machine_and_session: str) -> str:
        """The path of `M/S`, where M may be a name.

        Without a token, M is taken for an id: names are told only to those who have one.
        """
        machine, slash, session = machine_and_session.partition("/")
        if not slash or not machine or not session:
            fail(f"{machine_and_session!r} is not MACHINE/SESSION", USAGE)
        name, at, version = machine.partition("@")
        try:
            name = self.read(self.machine_path(name))["id"]
        except Refused as refused:
            if refused.exit_code != UNAUTHORISED:
                raise
            self._check_is_id(name, refused)
        return f"/{name}{at}{version}/{path_part(session)}"

    def _check_is_id(self, machine: str, refused: Refused) -> None:
        """Ends the command when no machine has this id: it is a name, or a typo."""
        try:
            self.read(f"/{quote(machine, safe='')}")
        except Refused as second:
            if second.exit_code != NOT_FOUND:
                raise
            refused.problem["detail"] = (
                f"{machine!r} is no machine's id, and this hub tells names only to those with a "
                "token: give one with --token or MACHINEHUB_TOKEN, or name the machine by the id in"
                " its URL"
            )
            raise refused from None

    def session_api_path(self, machine_and_session: str) -> str:
        """The path of `M/S` in the deploy API; a version behind M does not matter there."""
        machine, slash, session = machine_and_session.partition("/")
        if not slash or not machine or not session:
            fail(f"{machine_and_session!r} is not MACHINE/SESSION", USAGE)
        return f"{self.machine_path(machine.partition('@')[0])}/sessions/{path_part(session)}"


class Refused(Exception):
    """The hub's problem, as a command's end."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", ""))
        self.status = status
        self.problem = problem

    @classmethod
    def of(cls, response: httpx.Response) -> Refused:
        try:
            problem = response.json()
        except ValueError:
            problem = {
                "code": "unexpected",
                "detail": (
                    f"{response.request.url} answered {response.status_code}, and not as a hub does"
                ),
            }
        return cls(response.status_code, problem)

    @classmethod
    def of_error(cls, error: HubError) -> Refused:
        """The same for an error that was raised in this process."""
        return cls(
            error.status,
            {
                "detail": error.detail,
                "code": error.code,
                "title": error.title,
                "errors": error.errors,
            },
        )

    @property
    def exit_code(self) -> int:
        if self.status == 422:
            return (
                BROKEN_BUILD
                if self.problem.get("title") == "The machine does not build"
                else FAILED
            )
        return {
            401: UNAUTHORISED,
            403: UNAUTHORISED,
            404: NOT_FOUND,
            409: CONFLICT,
            412: CONFLICT,
            413: CONFLICT,
            429: CONFLICT,
        }.get(self.status, FAILED)

    def show(self) -> None:
        errors = self.problem.get("errors") or []
        for error in errors:
            place = ":".join(
                str(error[key]) for key in ("file", "line", "column") if error.get(key) is not None
            )
            progress.print(
                f"[bold]{plain(place)}[/bold]{': ' if place else ''}{plain(error['message'])}"
            )
        if not errors:
            progress.print(
                f"[red]error:[/red] {plain(str(self.problem.get('detail', '')))} "
                f"[dim]({plain(str(self.problem.get('code', '')))})[/dim]"
            )
