"""Folders that forges write to: made for each, removed when it ended, or at the next start if the
hub was killed before it could.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

PREFIX: Final = "machinehub-forge-"
_NAME: Final = re.compile(PREFIX + r"([0-9]+)-.*")


def make() -> Path:
    """A new folder, whose name says which process it is of."""
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def remove(folder: Path) -> None:
    """By `rm`: a folder may be deeper than Python recurses, and so large that the hub would
    wait.
    """
    with contextlib.suppress(OSError):
        command = ["rm", "-rf", "--", str(folder)]
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)  # noqa: S603 - our own


def left_behind() -> list[Path]:
    """Folders of this user's processes that are no more."""
    return [folder for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*") if _is_left(folder)]


def _is_left(folder: Path) -> bool:
    named = _NAME.fullmatch(folder.name)
    try:
        is_ours = not folder.is_symlink() and folder.stat().st_uid == os.geteuid()
    except OSError:  # another hub was quicker
        return False
    return named is not None and is_ours and not _runs(int(named[1]))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's, which has the number by now
    return True
