"""Freezes the base image, and makes the template of images: the last step of `make guest`, after
`npm run build`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sandbox.engine import Engine
from sandbox.forge import digest_of, forge_base, forge_image, load_guest

MEMORY_BYTES_MAX = 16 * 1024 * 1024
CPU_S = 10.0
IDLE = 'module.exports={default:require("xstate").createMachine({})};'
"""A machine that does nothing. Its image is the template that others are compressed against."""


def main() -> int:
    dist = Path(__file__).parent / "dist"
    engine_wasm = (dist / "engine.wasm").read_bytes()
    engine = Engine(None, kind="forge")
    base = forge_base(
        engine,
        engine_wasm,
        (dist / "genesis.wasm").read_bytes(),
        [(dist / name).read_text() for name in ("prelude.js", "polyfills.js")],
        memory_bytes_max=MEMORY_BYTES_MAX,
    )
    template, *_ = forge_image(
        engine,
        load_guest(engine, engine_wasm, base),
        IDLE,
        source_map=None,
        cpu_s=CPU_S,
        memory_bytes_max=MEMORY_BYTES_MAX,
    )
    (dist / "template.wasm").write_bytes(template)
    (dist / "base.wasm").write_bytes(base)
    print(f"base.wasm {digest_of(base)[:16]}, template.wasm {digest_of(template)[:16]}")
    return 0


sys.exit(main())
