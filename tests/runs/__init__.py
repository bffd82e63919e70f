"""Recorded runs of the examples: what came, what it led to, and the memory at the end.

`python -m tests.runs` records them anew.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sandbox.bundler import bundle
from sandbox.engine import Engine
from sandbox.forge import forge_image
from sandbox.protocol.formats import checkpoint_digest
from sandbox.protocol.outbox import decode_outbox
from sandbox.worker import GUEST
from tests.support import CACHE

if TYPE_CHECKING:
    from sandbox.loaded import LoadedImage
    from tests.sandbox.sandboxes import Sandbox

FOLDER = Path(__file__).parent
NOW_MS = 1_700_000_000_000
INPUTS = 60


class Run(msgspec.Struct):
    base: str
    """Digest of the base image that it was recorded on: another one lays the memory out
    differently.
    """
    inputs: list[tuple[str, int]]
    """(JSON text, now_ms) of what was accepted"""
    snapshots: list[Any]
    """After each input; null where it changed nothing public."""
    digest: str
    """Of the memory after the last one."""


def read_run(name: str) -> Run:
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Run)


def example_image(sandbox: Sandbox, path: Path) -> tuple[LoadedImage, list[str]]:
    """The image of an example, and its events."""
    forge = Engine(CACHE, kind="forge")
    esbuild = forge.compile_cached((GUEST / "esbuild.wasm").read_bytes(), name="esbuild")
    script = bundle(forge, esbuild, path.name, {path.name: path.read_text()}).script
    wasm, definition, _ = forge_image(
        sandbox.engine,
        sandbox.guest,
        script,
        source_map=None,
        cpu_s=2,
        memory_bytes_max=16 * 1024 * 1024,
    )
    return sandbox.load(wasm), definition.events


def record(sandbox: Sandbox, path: Path) -> Run:
    """Drives an example through events of its own, and its timers, as they come."""
    image, events = example_image(sandbox, path)
    machine = sandbox.thaw(image)
    chooser = random.Random(path.stem)
    now_ms = NOW_MS
    timers: dict[int, int] = {}
    inputs: list[tuple[str, int]] = []
    snapshots: list[Any] = []
    for number in range(INPUTS):
        now_ms += chooser.choice([5, 40, 700])
        due = min(timers, key=lambda timer: (timers[timer], timer), default=None)
        if number == 0:
            data = "[0,9]"
        elif due is not None and chooser.random() < 0.3:
            now_ms = max(now_ms, timers.pop(due))
            data = f"[2,{chooser.getrandbits(50)},{due}]"
        else:
            event = {
                "type": chooser.choice(events),
                "floor": number % 9,
                "cell": number % 9,
                "value": "1 Long Lane",
                "text": "hi",
                "dish": "soup",
                "option": "tabs",
                "count": 1,
            }
            data = f'[1,{chooser.getrandbits(50)},{msgspec.json.encode(event).decode()},{{"id":"c{number % 2}"}}]'
        outbox = machine.apply(data.encode(), now_ms, cpu_s=1)
        if isinstance(outbox, bytes):
            said = decode_outbox(outbox)
            timers |= dict(said.timers_set)
            for timer in said.timers_cancelled:
                timers.pop(timer, None)
            inputs.append((data, now_ms))
            snapshots.append(msgspec.json.decode(said.snapshot))
    return Run(
        sandbox.guest.base_digest, inputs, snapshots, checkpoint_digest(machine.checkpoint())
    )
