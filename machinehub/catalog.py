"""The catalog: machines and versions, as the API and the router ask for them.

Decides: what an upload must look like, when a build is needed (content is named by its digest),
what a machine reference in a URL means, and how long a lookup may be remembered. Does not know:
HTTP, sessions, how images are built.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

import msgspec

from machinehub.errors import BadRequest, BuildFailed, Conflict, NotFound, TooLarge
from machinehub.limits import MachineLimits, excessive, lowered
from machinehub.model import Image, MachineSettings
from machinehub.store.store import pack_files
from sandbox.protocol import GuestLimits, OwnLimits, is_deeper_than

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.limits import Limits
    from machinehub.model import Machine, Version
    from machinehub.store.store import Store
    from machinehub.workers import WorkerPool

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOKUP_SECONDS: Final = 2.0
"""How long a lookup may be remembered: this long after another node's activation, new sessions may
get the old version.
"""
MODULE_ABI: Final = "guest-abi 1"
DEFINITION_BYTES_MAX: Final = 4 * 1024 * 1024
DEFINITION_DEPTH_MAX: Final = 512
VERSIONS_REMEMBERED: Final = 10_000
"""Whose limits are in memory: a version never changes."""
IMAGES_REMEMBERED: Final = 64
"""Compressed images in memory, about 400 KiB each; the rest are read from the database when a
session needs them.
"""


class Upload(msgspec.Struct, kw_only=True):
    """The body of `POST /api/v1/deployments`."""

    name: str
    entry: str
    files: dict[str, str]
    """Their text by path; of a .wasm file its base64."""
    message: str = ""
    activate: bool = True
    machine: MachineSettings = MachineSettings()
    limits: MachineLimits = MachineLimits()

    @property
    def is_module(self) -> bool:
        """Whether the machine comes as a WASM module (docs/guest-abi.md)."""
        return self.entry.endswith(".wasm")


@dataclass(frozen=True, slots=True)
class Target:
    """What a session needs to know of its version."""

    machine: Machine
    number: int
    digest: str
    hears_presence: bool
    version: Version
    limits: Limits
    """The hub's, with the version's own where those are lower."""


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
    def __init__(
        self, store: Store, pool: WorkerPool, clock: Clock, entropy: Entropy, limits: Limits
    ) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._targets: dict[tuple[str, int | None], tuple[float, Target]] = {}
        self._images: OrderedDict[str, Image] = OrderedDict()
        self._limits_of: OrderedDict[tuple[str, int], Limits] = OrderedDict()
        self._deploying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- deploying --------------------------------------------------------------------------------

    async def deploy(self, upload: Upload) -> Deployed:
        """Builds the upload, unless its content was built before, and stores it.

        Raises `BuildFailed` and what `check` raises.
        """
        started = time.perf_counter_ns()
        check_upload(upload, self._limits)
        engine, base = ("", MODULE_ABI) if upload.is_module else self._pool.engine_and_base
        digest = content_digest(upload, engine, base, self._limits)
        built = None if await self._store.has_image(digest) else await self._build(upload, digest)
        # Deployments of one name take turns: two at once would only find out from the database that
        # they must.
        async with self._deploying.setdefault(upload.name, asyncio.Lock()):
            stored = await self._store_version(upload, digest, built)
            if stored is None:
                built = await self._build(upload, digest)
                stored = await self._store_version(upload, digest, built)
        assert stored is not None
        machine, number, created = stored
        self.forget(machine.id)
        try:
            version = await self._store.version(machine.id, number)
        except NotFound:
            raise Conflict(
                "deploy_conflict", "the machine was deleted while this was deployed"
            ) from None
        bundle_us, freeze_us, warnings = (
            (built.bundle_us, built.freeze_us, built.warnings) if built else (0, 0, [])
        )
        return Deployed(
            machine,
            version,
            created,
            bundle_us,
            freeze_us,
            (time.perf_counter_ns() - started) // 1000,
            warnings,
        )

    async def _build(self, upload: Upload, digest: str) -> Build:
        built = await build(self._pool, upload, self._limits)
        if built.code:
            await self._store.add_engine(built.image.engine, built.code)
        self._remember_image(digest, built.image)
        return built

    async def _store_version(
        self, upload: Upload, digest: str, built: Build | None
    ) -> tuple[Machine, int, bool] | None:
        return await self._store.deploy(
            new_id=self._entropy.machine_id(),
            name=upload.name,
            digest=digest,
            entry=upload.entry,
            files=pack_files(upload.files),
            message=upload.message,
            activate=upload.activate,
            now_ms=self._clock.now_ms(),
            image=built.image.image if built else None,
            engine=built.image.engine if built else "",
            definition=built.definition if built else None,
        )

    # --- looking up -------------------------------------------------------------------------------

    async def target(self, machine_id: str, number: int | None) -> Target:
        """The version that a session on `machine_id` gets: `number`, or the active one.

        Raises `NotFound`.

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
        target = Target(
            machine,
            wanted,
            version.digest,
            any(event in events for event in ("presence.joined", "presence.left", "presence.*")),
            version,
            self._lowered(version),
        )
        if len(self._targets) > 10_000:
            self._targets.clear()
        self._targets[machine_id, number] = (time.monotonic(), target)
        return target

    async def limits_of(self, machine_id: str, number: int) -> Limits:
        """What a version allows. Raises as `target` does."""
        known = self._limits_of.get((machine_id, number))
        if known is None:
            known = self._limits_of[machine_id, number] = (
                await self.target(machine_id, number)
            ).limits
            if len(self._limits_of) > VERSIONS_REMEMBERED:
                self._limits_of.popitem(last=False)
        return known

    def _lowered(self, version: Version) -> Limits:
        return lowered(
            self._limits, msgspec.convert(version.definition.get("limits", {}), MachineLimits)
        )

    async def image(self, digest: str) -> Image:
        """Raises `NotFound`, `Unavailable`."""
        image = self._images.get(digest)
        if image is None:
            image = await self._store.image(digest)
            if image.engine != self._pool.engine_and_base[0]:
                code = await self._store.engine_code(image.engine)
                image = msgspec.structs.replace(
                    image, engine_code=await self._pool.compile(code) if image.is_module else code
                )
            self._remember_image(digest, image)
        return image

    def at_hand(self, digest: str) -> Image | None:
        """The image, if it is in memory."""
        return self._images.get(digest)

    async def keep_engine(self) -> None:
        """Stores the engine that new images are frozen under: sessions stay on theirs when the hub
        gets another.
        """
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
        raise BadRequest(
            "invalid_name",
            "a machine's name is 1 to 64 letters, digits, dots, dashes or underscores, and begins with a letter or digit",
        )
    if len(upload.message) > 1000 or "\0" in upload.message:
        raise BadRequest("invalid_message", "a message has at most 1000 characters")
    if len(upload.files) > limits.source_files:
        raise TooLarge("source_too_large", f"an upload has at most {limits.source_files} files")
    try:
        size = sum(
            len(path.encode()) + len(content.encode()) for path, content in upload.files.items()
        )
    except UnicodeEncodeError:
        raise BadRequest("invalid_source", "a file is not Unicode text") from None
    if (wrong := excessive(limits, upload.limits)) is not None:
        raise BadRequest("invalid_limits", f"the machine's own limits: {wrong}")
    if upload.is_module:
        _module_of(upload, limits)
    elif size > limits.source_bytes:
        raise TooLarge(
            "source_too_large",
            f"the files of an upload have at most {limits.source_bytes} bytes together",
        )


@dataclass(frozen=True, slots=True)
class Build:
    """What a forge made of an upload."""

    image: Image
    definition: bytes
    """JSON"""
    code: bytes
    """Of a module: what it is compiled from, to be kept as an engine."""
    warnings: list[str]
    bundle_us: int
    freeze_us: int


async def build(pool: WorkerPool, upload: Upload, limits: Limits) -> Build:
    """Bundles and freezes, or checks and compiles a module, storing nothing. Raises `BuildFailed`."""
    own = upload.limits
    merged = lowered(limits, own)
    frozen = _guest_limits(merged)
    turns = OwnLimits(
        event_cpu_ms=own.event_cpu_ms,
        start_cpu_ms=own.start_cpu_ms,
        snapshot_bytes=own.snapshot_bytes,
        emitted_bytes=own.emitted_bytes,
    )
    if upload.is_module:
        module = await pool.build_module(
            module=_module_of(upload, limits),
            name=upload.name,
            cpu_ms=limits.build_cpu_ms,
            memory_bytes_max=merged.memory_bytes,
            limits=frozen,
            own=turns,
        )
        image = Image(image=module.image, engine=module.engine, engine_code=module.compiled)
        return Build(
            image,
            _definition(module.definition, own),
            module.code,
            [],
            module.check_us,
            module.compile_us,
        )
    built = await pool.build(
        entry=upload.entry,
        files=upload.files,
        cpu_ms=limits.build_cpu_ms,
        memory_bytes_max=merged.memory_bytes,
        bundle_bytes_max=limits.bundle_bytes,
        on_error=upload.machine.on_error,
        limits=frozen,
        own=turns,
    )
    return Build(
        Image(image=built.image, engine=pool.engine_and_base[0]),
        _definition(built.definition, own),
        b"",
        built.warnings,
        built.bundle_us,
        built.freeze_us,
    )


def _guest_limits(limits: Limits) -> GuestLimits:
    return GuestLimits(**{name: getattr(limits, name) for name in GuestLimits.__struct_fields__})


def _definition(definition: bytes, own: MachineLimits) -> bytes:
    """As a forge gave it, which has seen strangers' code: JSON, or the build is refused.

    With the version's own limits.
    """
    try:
        if len(definition) > DEFINITION_BYTES_MAX or is_deeper_than(
            definition, DEFINITION_DEPTH_MAX
        ):
            raise BuildFailed(
                "definition_too_large",
                f"the machine's states and transitions take more than {DEFINITION_BYTES_MAX} bytes, or nest too deeply",
            )
        read = msgspec.json.decode(definition, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise BuildFailed("machine_throws", "the machine's definition cannot be read") from None
    said = msgspec.to_builtins(own)
    return msgspec.json.encode(read | {"limits": said}) if said else definition


def _module_of(upload: Upload, limits: Limits) -> bytes:
    """The module of an upload. Raises `BadRequest`, `TooLarge`."""
    if list(upload.files) != [upload.entry]:
        raise BadRequest("invalid_source", "a WASM module is uploaded by itself")
    try:
        module = base64.b64decode(upload.files[upload.entry], validate=True)
    except ValueError:
        raise BadRequest("invalid_source", "a WASM module is uploaded as base64") from None
    if len(module) > limits.module_bytes:
        raise TooLarge("source_too_large", f"a WASM module has at most {limits.module_bytes} bytes")
    return module


def content_digest(upload: Upload, engine: str, base: str, limits: Limits) -> str:
    """The name of a version's content: what is uploaded, what it is built with, and the limits that
    are frozen into it.
    """
    frozen = lowered(limits, upload.limits)
    parts = [
        engine,
        base,
        upload.entry,
        sorted(upload.files.items()),
        upload.machine,
        upload.limits,
        _guest_limits(frozen),
        frozen.memory_bytes,
    ]
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()[:32]
