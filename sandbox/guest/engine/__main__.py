"""Compiles QuickJS-ng and our own parts to `dist/quickjs.wasm`: `python -m sandbox.guest.engine`.

The compiler comes from PyPI into an environment beside this file, the source of QuickJS from PyPI
too; both are pinned with their hashes. The result is the same on every machine: its digest stands
in `quickjs.sha256`, and another one fails the build. `--accept` writes the new digest instead,
after the source has been changed (docs/engine.md).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
RESULT: Final = HERE.parent / "dist" / "quickjs.wasm"
LICENSE: Final = HERE.parent / "dist" / "quickjs.LICENSE"
"""QuickJS's, for the notices of third parties (supply.py)."""
DIGEST: Final = HERE / "quickjs.sha256"
ENVIRONMENT: Final = HERE / ".venv"
PYTHON: Final = ENVIRONMENT / "bin" / "python"
CACHE: Final = ENVIRONMENT / "cache"

STACK_BYTES: Final = 1024 * 1024
"""Of C's stack, which lies at the beginning of the memory (see `_stack_bytes` in forge.py)."""

COMPILE: Final = [
    "-target",
    "wasm32-wasi",
    # Neither memory.copy nor memory.fill: runtime.c says why. Nor vectors, which would make a
    # session's results depend on more of the runtime than is needed.
    "-mcpu=mvp+mutable_globals+sign_ext+nontrapping_fptoint",
    "-O3",
    "-DNDEBUG",
    "-D_GNU_SOURCE",
    "-D_WASI_EMULATED_PROCESS_CLOCKS",
    # QuickJS relies on both. The compiler adds checks of undefined behaviour unless told not to.
    "-fwrapv",
    "-funsigned-char",
    "-fno-sanitize=all",
    "-fno-stack-protector",
    "-Wno-everything",
]
LINK: Final = [
    "-mexec-model=reactor",
    f"-Wl,-z,stack-size={STACK_BYTES}",
    "-Wl,--strip-all",
    "-Wl,--export=fault",
]
QUICKJS: Final = ["quickjs.c", "dtoa.c", "libregexp.c", "libunicode.c"]
OURS: Final = ["glue.c", "heap.c", "state.s"]
HEADERS: Final = ["engine.h", "freeze.h", "heap.h", "image.h"]


def main() -> int:
    _install()
    with tempfile.TemporaryDirectory(prefix="machinehub-engine-") as work:
        source = _source(Path(work))
        wasm = _compile(source)
        # The source distribution has it nowhere but at the head of each file.
        head, _, _ = (source / "quickjs.c").read_text().partition("*/")
    digest = hashlib.sha256(wasm).hexdigest()
    if "--accept" in sys.argv[1:]:
        DIGEST.write_text(f"{digest}\n")
    elif digest != DIGEST.read_text().strip():
        print(
            f"quickjs.wasm is {digest}, not what {DIGEST.name} says. After a change of the source:"
            " python -m sandbox.guest.engine --accept",
            file=sys.stderr,
        )
        return 1
    RESULT.parent.mkdir(exist_ok=True)
    LICENSE.write_text("".join(f"{line.strip('/* ')}\n" for line in head.splitlines()).lstrip())
    RESULT.write_bytes(wasm)
    print(f"quickjs.wasm {digest[:16]}")
    return 0


def _install() -> None:
    """The compiler, in an environment of its own: it is large, and only this needs it."""
    lock = HERE / "tools.lock"
    done = ENVIRONMENT / ".installed"
    if done.exists() and done.read_bytes() == lock.read_bytes():
        return
    _run([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)])
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--require-hashes", "-r", str(lock)])
    done.write_bytes(lock.read_bytes())


def _source(work: Path) -> Path:
    """A folder with QuickJS's source, patched, and ours."""
    pip = [str(PYTHON), "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    only_source = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    pinned = ["--require-hashes", "-r", str(HERE / "source.lock")]
    _run([*pip, *only_source, *pinned, "--dest", str(work)])
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    (folder,) = work.glob("*/upstream-quickjs")
    patch = [str(PYTHON), "-m", "patch_ng", "--quiet", "--directory", str(folder)]
    _run([*patch, str(HERE / "quickjs.patch")])
    for name in [*OURS, *HEADERS, "runtime.c"]:
        shutil.copy(HERE / name, folder)
    return folder


def _compile(folder: Path) -> bytes:
    compiler = [str(PYTHON), "-m", "ziglang", "cc", *COMPILE]
    # Our memcpy must not become a call of memcpy.
    _run([*compiler, "-fno-builtin", "-c", "runtime.c", "-o", "runtime.o"], folder)
    _run([*compiler, *LINK, *QUICKJS, *OURS, "runtime.o", "-o", "quickjs.wasm"], folder)
    return (folder / "quickjs.wasm").read_bytes()


def _run(command: list[str], folder: Path | None = None) -> None:
    # The compiler keeps what it made of the C library; else it would look for a home to do so.
    caches = dict.fromkeys(("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"), str(CACHE))
    subprocess.run(command, cwd=folder, check=True, env=os.environ | caches)


if __name__ == "__main__":
    sys.exit(main())
