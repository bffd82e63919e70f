"""Machine code on disk: what one process compiled, another maps.

A file counts only when its own digest fits.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from pathlib import Path


def processor() -> str:
    """What the machine code was made for: the architecture and the processor's feature list."""
    features = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features = hashlib.sha256(line.encode()).hexdigest()[:16]
                break
    return f"{platform.system()} {platform.machine()} {features}"


def read_checked(path: Path, folder: int | None = None) -> bytes | None:
    """The code in a file, by its path or (with a descriptor of its folder) by its name there; None
    when it is damaged or missing.
    """
    try:
        with open(
            path.name if folder is not None else path,
            "rb",
            opener=lambda name, flags: os.open(name, flags, dir_fd=folder),
        ) as file:
            digest, code = file.read(32), file.read()
    except OSError:
        return None
    return code if hashlib.sha256(code).digest() == digest else None


def write_checked(path: Path, code: bytes) -> None:
    """Writes beside and renames, so that two processes that compile at once cannot see each other's
    half file.
    """
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        try:
            Path(file.name).replace(path)
        finally:
            Path(file.name).unlink(missing_ok=True)
