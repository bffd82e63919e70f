"""The user's file of hubs and tokens, readable by nobody else."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

from machinehub.paths import config_folder

if TYPE_CHECKING:
    from pathlib import Path


class Known(NamedTuple):
    """A hub, and the token for it."""

    url: str
    token: str


def known() -> dict[str, Known]:
    """By name. A file that cannot be read counts as none."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))["servers"]
        return {name: Known(str(each["url"]), str(each["token"])) for name, each in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def remember(name: str, hub: Known) -> None:
    """Raises `OSError`."""
    _write(known() | {name: hub})


def forget(name: str) -> bool:
    """Whether there was one of this name. Raises `OSError`."""
    there = known()
    if there.pop(name, None) is None:
        return False
    _write(there)
    return True


def resolved(server: str, token: str) -> Known:
    """The hub that `--server` means: one that is known by that name or URL, with its token unless
    another is given; else the URL itself.
    """
    there = known()
    found = there.get(server)
    if found is None:
        url = server.rstrip("/")
        found = next((each for each in there.values() if each.url == url), Known(server, ""))
    return Known(found.url, token or found.token)


def _file() -> Path:
    return config_folder() / "servers.json"


def _write(hubs: dict[str, Known]) -> None:
    """In one step: a file that was half written would lose all logins."""
    file = _file()
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    descriptor = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        json.dump({"servers": {name: hub._asdict() for name, hub in hubs.items()}}, opened)
    new.replace(file)
