"""A cache of compiled machine code on disk.

One process compiles a module and writes it; others map the file, after they have checked its
digest.
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


class CodeCache:
    """A folder of machine code for one kind of engine.

    Files are keyed by the digest of what was compiled and by `made_for`: wasmtime's version, the
    engine's settings, the processor.
    """

    def __init__(self, folder: Path, made_for: str) -> None:
        self._folder = folder
        self._made_for = made_for
        self._prefetched: dict[Path, bytes] = {}
        self._paths: dict[str, tuple[bytes, Path]] = {}
        """Of what is being looked for: what was compiled stays in memory no longer than that."""
        self._descriptor: int | None = None
        """The folder, opened while that was still allowed."""

    def take(self, wasm: bytes, name: str) -> bytes | None:
        """The code, once if it was prefetched; None when it has to be compiled."""
        path = self._path(wasm, name)
        code = self._prefetched.pop(path, None) or _read_checked(path, self._descriptor)
        if code is not None:
            self._paths.pop(name)
        return code

    def write(self, wasm: bytes, name: str, code: bytes) -> None:
        _write_checked(self._path(wasm, name), code)
        self._paths.pop(name)

    def prefetch(self, modules: dict[str, bytes]) -> list[tuple[str, bytes]]:
        """Reads what is there; the others, by name, are to be compiled."""
        missing = []
        for name, wasm in modules.items():
            path = self._path(wasm, name)
            code = _read_checked(path)
            if code is None:
                missing.append((name, wasm))
            else:
                self._prefetched[path] = code
        return missing

    def stay_open(self) -> None:
        """From now on files are read by a descriptor of the folder: opening paths may be forbidden
        soon.
        """
        if self._folder.is_dir():
            self._descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _path(self, wasm: bytes, name: str) -> Path:
        known, path = self._paths.get(name, (b"", Path()))
        # Hashing esbuild takes a while: the very bytes that were asked about last are known.
        if known is not wasm:
            content = hashlib.sha256(wasm)
            content.update(self._made_for.encode())
            path = self._folder / f"{name}-{content.hexdigest()[:32]}.cwasm"
            self._paths[name] = wasm, path
        return path


def _read_checked(path: Path, folder: int | None = None) -> bytes | None:
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


def _write_checked(path: Path, code: bytes) -> None:
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
