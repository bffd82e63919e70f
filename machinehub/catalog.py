"""The catalog: machines and versions, as the API and the router ask for them.

Decides: what an upload must look like, when a build is needed (content is named by its digest), what a machine reference
in a URL means, and how long a lookup may be remembered. Does not know: HTTP, sessions, how images are built.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import msgspec

from machinehub.errors import BadRequest, Conflict, NotFound, TooLarge
from machinehub.model import Image, MachineSettings
from machinehub.store.store import pack_files

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.limits import Limits
    from machinehub.model import Machine, Version
    from machinehub.store.store import Store
    from machinehub.workers import WorkerPool
    from sandbox.protocol import Built

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOKUP_SECONDS: Final = 2.0
"""How long a lookup may be remembered: this long after another node's activation, new sessions may get the old version."""
IMAGES_REMEMBERED: Final = 64
"""Compressed images in memory, about 400 KiB each; the rest are read from the database when a session needs them."""


class Upload(msgspec.Struct, kw_only=True):
    """The body of `POST /api/v1/deployments`."""

    name: str
    entry: str
    files: dict[str, str]
    message: str = ""
    activate: bool = True
    machine: MachineSettings = MachineSettings()


@dataclass(frozen=True, slots=True)
class Target:
    """What a session needs to know of its version."""

    machine: Machine
    number: int
    digest: str
    hears_presence: bool
    version: Version


@dataclass(frozen=True, slots=True)
class Deployed:
    machine: Machine
    version: Version
    created: bool
    bundle_us: int
    freeze_us: int
    total_us: int
    warnings: list[str]


class Catalog:
    def __init__(self, store: Store, pool: WorkerPool, clock: Clock, entropy: Entropy, limits: Limits) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._targets: dict[tuple[str, int | None], tuple[float, Target]] = {}
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._deploying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- deploying ---------------------------------------------------------------------------------------------

    async def deploy(self, upload: Upload) -> Deployed:
        """Builds the upload, unless its content was built before, and stores it. Raises `BuildFailed` and what `check` raises."""
        started = time.perf_counter_ns()
        check_upload(upload, self._limits)
        engine, base = self._pool.engine_and_base
        digest = content_digest(upload, engine, base)
        built = None if await self._store.has_image(digest) else await self._build(upload, digest)
        # Deployments of one name take turns: two at once would only find out from the database that they must.
        async with self._deploying.setdefault(upload.name, asyncio.Lock()):
            stored = await self._store_version(upload, digest, engine, built)
            if stored is None:
                built = await self._build(upload, digest)
                stored = await self._store_version(upload, digest, engine, built)
        assert stored is not None
        machine, number, created = stored
        self.forget(machine.id)
        try:
            version = await self._store.version(machine.id, number)
        except NotFound:
            raise Conflict("deploy_conflict", "the machine was deleted while this was deployed") from None
        bundle_us, freeze_us, warnings = (built.bundle_us, built.freeze_us, built.warnings) if built else (0, 0, [])
        return Deployed(machine, version, created, bundle_us, freeze_us, (time.perf_counter_ns() - started) // 1000, warnings)

    async def _build(self, upload: Upload, digest: str) -> Built:
        built = await build(self._pool, upload, self._limits)
        self._remember_image(digest, Image(image=built.image, engine=self._pool.engine_and_base[0]))
        return built

    async def _store_version(self, upload: Upload, digest: str, engine: str, built: Built | None) -> tuple[Machine, int, bool] | None:
        return await self._store.deploy(
            new_id=self._entropy.machine_id(), name=upload.name, digest=digest, entry=upload.entry, files=pack_files(upload.files),
            message=upload.message, activate=upload.activate, now_ms=self._clock.now_ms(),
            image=built.image if built else None, engine=engine, definition=built.definition if built else None,
        )  # fmt: skip

    # --- looking up --------------------------------------------------------------------------------------------

    async def target(self, machine_id: str, number: int | None) -> Target:
        """The version that a session on `machine_id` gets: `number`, or the active one. Raises `NotFound`.

        Only ids count here, not names: an id is the secret that lets people in.
        """
        known = self._targets.get((machine_id, number))
        if known is not None and time.monotonic() - known[0] < LOOKUP_SECONDS:
            return known[1]
        machine = await self._store.machine(machine_id)
        if machine.id != machine_id:
            raise NotFound("no_such_machine", f"there is no machine {machine_id[:100]!r}")
        wanted = machine.active_version if number is None else number
        if number is None and wanted == 0:
            raise NotFound("no_active_version", "no version of this machine was activated yet")
        version = await self._store.version(machine_id, wanted)
        events = version.definition.get("events", [])
        target = Target(machine, wanted, version.digest, any(event in events for event in ("presence.joined", "presence.left", "presence.*")), version)
        if len(self._targets) > 10_000:
            self._targets.clear()
        self._targets[machine_id, number] = (time.monotonic(), target)
        return target

    async def image(self, digest: str) -> Image:
        """Raises `NotFound`, `Unavailable`."""
        image = self._images.get(digest)
        if image is None:
            image = await self._store.image(digest)
            if image.engine != self._pool.engine_and_base[0]:
                image = msgspec.structs.replace(image, engine_code=await self._store.engine_code(image.engine))
            self._remember_image(digest, image)
        return image

    def at_hand(self, digest: str) -> Image | None:
        """The image, if it is in memory."""
        return self._images.get(digest)

    async def keep_engine(self) -> None:
        """Stores the engine that new images are frozen under: sessions stay on theirs when the hub gets another."""
        digest, _ = self._pool.engine_and_base
        if not await self._store.has_engine(digest):
            await self._store.add_engine(digest, await self._pool.engine_code())

    def forget(self, machine_id: str) -> None:
        """Something about the machine changed: the next lookup asks the database."""
        for key in [key for key in self._targets if key[0] == machine_id]:
            del self._targets[key]

    def _remember_image(self, digest: str, image: Image) -> None:
        self._images[digest] = image
        if len(self._images) > IMAGES_REMEMBERED:
            self._images.popitem(last=False)


def check_upload(upload: Upload, limits: Limits) -> None:
    """Raises for an upload that is too large or wrongly named, before anything is built."""
    if not NAME.fullmatch(upload.name):
        raise BadRequest("invalid_name", "a machine's name is 1 to 64 letters, digits, dots, dashes or underscores, and begins with a letter or digit")
    if len(upload.message) > 1000 or "\0" in upload.message:
        raise BadRequest("invalid_message", "a message has at most 1000 characters")
    if len(upload.files) > limits.source_files:
        raise TooLarge("source_too_large", f"an upload has at most {limits.source_files} files")
    try:
        size = sum(len(path.encode()) + len(content.encode()) for path, content in upload.files.items())
    except UnicodeEncodeError:
        raise BadRequest("invalid_source", "a file is not Unicode text") from None
    if size > limits.source_bytes:
        raise TooLarge("source_too_large", f"the files of an upload have at most {limits.source_bytes} bytes together")


async def build(pool: WorkerPool, upload: Upload, limits: Limits) -> Built:
    """Bundles and freezes, storing nothing. Raises `BuildFailed`."""
    return await pool.build(
        entry=upload.entry, files=upload.files, cpu_ms=limits.build_cpu_ms,
        memory_bytes_max=limits.memory_bytes, bundle_bytes_max=limits.bundle_bytes, on_error=upload.machine.on_error,
    )  # fmt: skip


def content_digest(upload: Upload, engine: str, base: str) -> str:
    """The name of a version's content: what is uploaded, and what it is built with."""
    parts = msgspec.msgpack.encode([engine, base, upload.entry, sorted(upload.files.items()), upload.machine])
    return hashlib.sha256(parts).hexdigest()[:32]
