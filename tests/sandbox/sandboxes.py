"""The sandbox in this process, without a hub: for tests, and for `python -m bench guest`."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from sandbox.engine import Engine
from sandbox.forge import Guest, forge_image, load_guest
from sandbox.instance import Fault, LiveMachine, Sizes
from sandbox.loaded import LoadedImage, load_image
from sandbox.worker import GUEST
from tests.support import CACHE

MEMORY = 16 * 1024 * 1024
NOW_MS = 1_700_000_000_000


class Sandbox:
    """A session engine and a forge, as two processes have them; here they share one, which only
    tests may.
    """

    def __init__(self) -> None:
        engine_wasm, base = (GUEST / "engine.wasm").read_bytes(), (GUEST / "base.wasm").read_bytes()
        self.engine = Engine(CACHE)
        self.guest: Guest = load_guest(self.engine, engine_wasm, base)

    def image(self, expression: str) -> LoadedImage:
        return self.image_of(
            f'const {{assign,createMachine,createActor,fromPromise,fromCallback,raise,emit,spawnChild,setup}}=require("xstate");module.exports={{default:{expression}}};'
        )

    def image_of(self, script: str, **options: Any) -> LoadedImage:
        """The image of a bundle; `options` are those of `forge_image`."""
        return self.load(self.forged(script, **options))

    def forged(self, script: str, **options: Any) -> bytes:
        wasm, _, _ = forge_image(
            self.engine,
            self.guest,
            script,
            source_map=None,
            cpu_s=2,
            memory_bytes_max=MEMORY,
            **options,
        )
        return wasm

    def load(self, wasm: bytes) -> LoadedImage:
        return load_image(
            self.engine,
            {self.guest.engine_digest: self.guest.engine},
            wasm,
            memory_bytes_max=MEMORY,
        )

    def thaw(self, image: LoadedImage, checkpoint: bytes | None = None) -> LiveMachine:
        return LiveMachine(
            self.engine, image, Sizes(MEMORY, 256 * 1024, 256 * 1024), checkpoint=checkpoint
        )

    def start(self, expression: str) -> LiveMachine:
        return self.started(self.image(expression))

    def started(self, image: LoadedImage) -> LiveMachine:
        machine = self.thaw(image)
        outbox = machine.apply(b"[0,5]", NOW_MS, cpu_s=1)
        assert isinstance(outbox, bytes), outbox
        return machine


def send(machine: LiveMachine, event_type: str, cpu_s: float = 0.05, **more: Any) -> bytes | Fault:
    event = msgspec.json.encode({"type": event_type, **more})
    return machine.apply(
        b'[1,%d,%b,{"id":"c"}]' % (random.getrandbits(50), event), NOW_MS + 1, cpu_s=cpu_s
    )
