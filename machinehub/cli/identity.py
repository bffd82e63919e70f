"""Who this command line is to a machine: a client key for each user of the computer, so that all
events from one terminal, and from the next, are one participant's. `--as NAME` is another one.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated

import typer

from machinehub.clock import new_client_key
from machinehub.paths import config_folder

if TYPE_CHECKING:
    from pathlib import Path

As = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="NAME",
        help="Send as somebody else than usual: one name is always the same participant.",
        show_default=False,
    ),
]
KEY_CHARS = 32
_KEY = re.compile(f"[0-9a-f]{{{KEY_CHARS}}}")


def client_key(name: str = "") -> str:
    """The client key of this user, or of one called `name`: 32 hexadecimal digits. One that is
    needed for the first time is made up and kept; where that cannot be, it counts this once.
    """
    own = _own_key(config_folder() / "client-key")
    return own if not name else hashlib.sha256(f"{own}\0{name}".encode()).hexdigest()[:KEY_CHARS]


def _own_key(path: Path) -> str:
    try:
        known = path.read_text(encoding="ascii").strip() if path.is_file() else ""
        if _KEY.fullmatch(known):
            return known
    except (OSError, UnicodeDecodeError):
        pass
    made = new_client_key()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(made, encoding="ascii")
    except OSError:
        pass
    return made
