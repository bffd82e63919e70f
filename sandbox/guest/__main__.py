"""Freezes the base image: the last step of `make guest`, after `npm run build`."""

from __future__ import annotations

import sys
from pathlib import Path

from sandbox.engine import Engine
from sandbox.forge import digest_of, forge_base

MEMORY_BYTES_MAX = 16 * 1024 * 1024


def main() -> int:
    dist = Path(__file__).parent / "dist"
    engine_wasm = (dist / "engine.wasm").read_bytes()
    base = forge_base(
        Engine(None, kind="forge"),
        engine_wasm,
        (dist / "genesis.wasm").read_bytes(),
        [(dist / name).read_text() for name in ("prelude.js", "polyfills.js")],
        memory_bytes_max=MEMORY_BYTES_MAX,
    )
    (dist / "base.wasm").write_bytes(base)
    print(f"base.wasm {digest_of(base)[:16]}")
    return 0


sys.exit(main())
