"""The catalog: machines and versions, as the deploy API and the protocols ask for them.

Decides: when a build is needed (content is named by its digest), what a machine reference in a URL
means, and how long a lookup may be remembered. Does not know: HTTP, sessions, how images are built.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakValueDictionary

import msgspec

from machinehub.clock import Stopwatch
from machinehub.control.builds import build
from machinehub.control.uploads import check_upload
from machinehub.edge.gate import no_such_machine
from machinehub.effects.hooks import webhooks_of
from machinehub.errors import BuildFailed, NotFound
from machinehub.limits import MachineLimits, lowered
from machinehub.model import DEFAULT_PROJECT
from machinehub.session.versions import Terms
from machinehub.store.store import pack_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from machinehub.clock import Clock, Entropy
    from machinehub.control.builds import Build
    from machinehub.control.uploads import Source, Upload
    from machinehub.ids import Digest, MachineId, ProjectId
    from machinehub.limits import Limits
    from machinehub.model import Image, Machine, Version
    from machinehub.store.store import Deployment, Store
    from machinehub.workers.pool import WorkerPool

K = TypeVar("K")
V = TypeVar("V")
LOOKUP_S: Final = 2.0
"""How many seconds a lookup is cached; `forget` drops it earlier when the machine changes."""
TARGETS_REMEMBERED: Final = 10_000
VERSIONS_REMEMBERED: Final = 10_000
"""Whose terms are in memory: a version never changes."""
IMAGES_REMEMBERED: Final = 64
"""Compressed images in memory, some 20 KiB each, or 400 KiB of older ones; the rest are read from
the database when a session needs them.
"""
HEARS_PRESENCE: Final = frozenset({"presence.joined", "presence.left", "presence.*"})


@dataclass(frozen=True, slots=True)
class Target:
    """What a session needs to know of its version."""

    machine: Machine
    version: Version
    limits: Limits
    """The hub's, with the version's own where those are lower."""

    @property
    def number(self) -> int:
        return self.version.number

    @property
    def digest(self) -> Digest:
        return self.version.digest

    @property
    def terms(self) -> Terms:
        said = self.version.definition
        of_webhooks = frozenset(each.event_type for each in webhooks_of(said))
        return Terms(self.limits, bool(said.get("view")), of_webhooks)

    @property
    def hears_presence(self) -> bool:
        return not HEARS_PRESENCE.isdisjoint(self.version.definition.get("events", []))


@dataclass(frozen=True, slots=True)
class Deployed:
    machine: Machine
    version: Version
    created: bool
    """False for content that the machine has already."""
    bundle_us: int
    freeze_us: int
    total_us: int


class Catalog:
    def __init__(
        self, store: Store, pool: WorkerPool, clock: Clock, entropy: Entropy, limits: Limits
    ) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._targets: dict[tuple[MachineId, int | None], tuple[float, Target]] = {}
        self._images: OrderedDict[Digest, Image] = OrderedDict()
        """The most recently used last."""
        self._terms: OrderedDict[tuple[MachineId, int], Terms] = OrderedDict()
        self._machines: OrderedDict[MachineId, tuple[float, Machine]] = OrderedDict()
        self.on_change: Callable[[MachineId], None] = lambda _machine: None
        """Hears of machines that this node changed."""
        self._deploying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- deploying --------------------------------------------------------------------------------

    async def deploy(
        self,
        upload: Upload,
        project: ProjectId = DEFAULT_PROJECT,
        *,
        private_when_new: bool = False,
    ) -> Deployed:
        """Builds the upload, unless its content was built before, and stores it. A machine that is
        new is private if the upload says so, or else with `private_when_new`.

        Raises `BuildFailed` (for warnings too, when the upload is strict), `Conflict`, and what
        `check_upload` raises.
        """
        watch = Stopwatch()
        source = check_upload(upload, self._limits)
        digest = source.digest(*self._pool.engine_and_base)
        earlier = await self._store.definition(digest, project)
        built = await self._build(source, digest) if earlier is None else None
        if upload.strict:
            _refuse_warnings(built.warnings if built else (earlier or {}).get("warnings", []))
        # Deployments of one name take turns: two at once would only find out from the database that
        # they must.
        async with self._deploying.setdefault(f"{project}/{upload.name}", asyncio.Lock()):
            stored = await self._store_version(
                upload, project, digest, built, private_when_new=private_when_new
            )
            if stored is None:  # the last machine with this content was deleted meanwhile
                built = await self._build(source, digest)
                stored = await self._store_version(
                    upload, project, digest, built, private_when_new=private_when_new
                )
        assert stored is not None
        self.forget(stored.machine.id)
        return Deployed(
            stored.machine,
            stored.version,
            stored.created,
            built.bundle_us if built else 0,
            built.freeze_us if built else 0,
            watch.us,
        )

    async def _build(self, source: Source, digest: Digest) -> Build:
        built = await build(self._pool, source, self._limits)
        if built.code:
            await self._store.add_engine(built.image.engine, built.code)
        self._remember_image(digest, built.image)
        return built

    async def _store_version(
        self,
        upload: Upload,
        project: ProjectId,
        digest: Digest,
        built: Build | None,
        *,
        private_when_new: bool,
    ) -> Deployment | None:
        return await self._store.deploy(
            new_id=self._entropy.machine_id(),
            project=project,
            name=upload.name,
            digest=digest,
            entry=upload.entry,
            files=pack_files(upload.files),
            message=upload.message,
            activate=upload.activate,
            now_ms=self._clock.now_ms(),
            image=built.image.image if built else None,
            engine=built.image.engine if built else "",
            template=built.image.template if built else "",
            definition=built.definition if built else None,
            private=upload.private,
            private_when_new=private_when_new,
        )

    async def prune(self, machine_id: MachineId, *, keep: int, used: Collection[int]) -> list[int]:
        """Deletes versions that nothing uses: all but the active one, the newest `keep`, those that
        sessions are on, and `used`. Returns their numbers.
        """
        self.forget(machine_id)
        gone = await self._store.prune_versions(machine_id, keep=keep, used=used)
        self.forget(machine_id)
        return gone

    # --- looking up -------------------------------------------------------------------------------

    async def target(self, machine_id: MachineId, number: int | None) -> Target:
        """The version that a session on `machine_id` gets: `number`, or the active one. Raises
        `NotFound`.

        Only ids count here, not names: an id is the secret that lets people in.
        """
        known = self._targets.get((machine_id, number))
        now_s = self._clock.monotonic_s()
        if known is not None and now_s - known[0] < LOOKUP_S:
            return known[1]
        machine = await self.machine(machine_id)
        wanted = machine.active_version if number is None else number
        if number is None and wanted == 0:
            raise NotFound("no_active_version", "no version of this machine was activated yet")
        version = await self._store.version(machine_id, wanted)
        own = msgspec.convert(version.definition.get("limits", {}), MachineLimits)
        target = Target(machine, version, lowered(self._limits, own))
        if len(self._targets) > TARGETS_REMEMBERED:
            self._targets.clear()
        self._targets[machine_id, number] = now_s, target
        return target

    async def machine(self, machine_id: MachineId) -> Machine:
        """A machine of any project, by its id. Raises `NotFound`."""
        known = self._machines.get(machine_id)
        now_s = self._clock.monotonic_s()
        if known is not None and now_s - known[0] < LOOKUP_S:
            return known[1]
        machine = await self._store.machine(machine_id, everywhere=True)
        if machine.id != machine_id:
            raise no_such_machine(machine_id)
        remember(self._machines, machine_id, (now_s, machine), TARGETS_REMEMBERED)
        return machine

    async def terms_of(self, machine_id: MachineId, number: int) -> Terms:
        """What a version allows. Raises as `target` does."""
        known = self._terms.get((machine_id, number))
        if known is None:
            try:
                known = (await self.target(machine_id, number)).terms
            except NotFound as error:
                if error.code != "no_such_version":
                    raise
                # It was pruned the moment that a session began on it: what it would have shown to
                # whom is not known any more.
                known = Terms(self._limits, has_view=True)
            remember(self._terms, (machine_id, number), known, VERSIONS_REMEMBERED)
        return known

    async def image(self, digest: Digest) -> Image:
        """Raises `NotFound`, `Unavailable`."""
        image = self.at_hand(digest)
        if image is None:
            image = await self._store.image(digest)
            if image.engine != self._pool.engine_and_base[0]:
                code = await self._store.engine_code(image.engine)
                if image.is_module:
                    code = await self._pool.builds.compile(code)
                image = msgspec.structs.replace(image, engine_code=code)
            if image.template not in ("", self._pool.template):
                code = await self._store.engine_code(image.template)
                image = msgspec.structs.replace(image, template_code=code)
            self._remember_image(digest, image)
        return image

    def at_hand(self, digest: Digest) -> Image | None:
        """The image, if it is in memory."""
        image = self._images.get(digest)
        if image is not None:
            self._images.move_to_end(digest)
        return image

    async def keep_engine(self) -> None:
        """Stores the engine that new images are frozen under, and the template that they are
        compressed against: sessions stay on theirs when the hub gets others.
        """
        engine, _ = self._pool.engine_and_base
        for digest in (engine, self._pool.template):
            if not await self._store.has_engine(digest):
                given = await self._pool.builds.parts()
                await self._store.add_engine(given.digest, given.engine)
                await self._store.add_engine(given.template_digest, given.template)

    def forget(self, machine_id: MachineId) -> None:
        """Something about the machine changed: the next lookup asks the database, here and on other
        nodes.
        """
        self.forget_here(machine_id)
        self.on_change(machine_id)

    def forget_here(self, machine_id: MachineId) -> None:
        """Another node changed something about the machine."""
        self._machines.pop(machine_id, None)
        for key in [key for key in self._targets if key[0] == machine_id]:
            del self._targets[key]

    def _remember_image(self, digest: Digest, image: Image) -> None:
        remember(self._images, digest, image, IMAGES_REMEMBERED)


def _refuse_warnings(warnings: list[dict[str, Any]]) -> None:
    """Raises `BuildFailed` if there are any."""
    if warnings:
        count = "a warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
        raise BuildFailed("has_warnings", f"the build has {count}", errors=warnings)


def remember(known: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Adds to a bounded store, from which the one that was used longest ago goes."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
