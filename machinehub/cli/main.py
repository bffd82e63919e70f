"""`machinehub`: puts the commands together. Each is a file of this folder."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from machinehub.cli import (
    access,
    calendar,
    database,
    dev,
    effects,
    init,
    machines,
    nodes,
    operations,
    past,
    projects,
    servers,
    sessions,
)
from machinehub.cli import build as build_commands
from machinehub.cli import serve as serve_commands
from machinehub.cli import types as types_command
from machinehub.cli.common import FAILED, INTERRUPTED, OK, USAGE, Refused, plain, progress, say
from machinehub.errors import HubError
from machinehub.settings import BadSettings

app = typer.Typer(
    name="machinehub",
    help="Deploy an XState machine, get a live multiplayer URL.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"machinehub {version('machinehub')}")
        raise typer.Exit(OK)


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version),
    ] = False,
) -> None:
    pass


for module in (
    init,
    dev,
    serve_commands,
    build_commands,
    machines,
    sessions,
    past,
    types_command,
    operations,
    database,
    projects,
    access,
    nodes,
    calendar,
    effects,
    servers,
):
    module.register(app)


def main() -> None:
    """The console script. Turns what a command raises into its message and exit code."""
    # An event may hold a number of 64 000 digits; hubs bound it, and so need not we.
    sys.set_int_max_str_digits(0)
    try:
        app(standalone_mode=True)
    except Refused as refused:
        refused.show()
        sys.exit(refused.exit_code)
    except HubError as error:
        local = Refused.of_error(error)
        local.show()
        sys.exit(local.exit_code)
    except BadSettings as error:
        _end(str(error), FAILED)
    except UnicodeEncodeError:
        _end("an argument is not text that can be sent", USAGE)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python complains when it flushes at the end
        sys.exit(OK)
    except OSError as error:
        _end(f"{error.filename or ''}: {error.strerror or error}".lstrip(": "), FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _end(message: str, code: int) -> NoReturn:
    progress.print(f"[red]error:[/red] {plain(message)}")
    sys.exit(code)
