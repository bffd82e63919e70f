"""`machinehub`: puts the commands together. Each is a file of this folder."""

from __future__ import annotations

import sys

import typer

from machinehub.cli import build as build_commands
from machinehub.cli import machines, operations, sessions
from machinehub.cli import serve as serve_commands
from machinehub.cli.common import INTERRUPTED, Refused, progress
from machinehub.errors import HubError
from machinehub.settings import BadSettings

app = typer.Typer(
    name="machinehub", help="Deploy an XState machine, get a live multiplayer URL.", no_args_is_help=True, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

for module in (serve_commands, build_commands, machines, sessions, operations):
    module.register(app)


def main() -> None:
    """The console script. Turns what a command raises into its message and exit code."""
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
        progress.print(f"[red]error:[/red] {error}", markup=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
