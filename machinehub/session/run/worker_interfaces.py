"""What sessions need of workers and images. `machinehub/workers` and the catalog give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from machinehub.ids import Digest
    from machinehub.model import Image
    from sandbox.protocol.ids import Slot
    from sandbox.protocol.messages import Question, ToWorker


class Images(Protocol):
    """Where the images of versions come from; the catalog implements it."""

    async def image(self, digest: Digest) -> Image:
        """Raises `NotFound`, `Unavailable`."""
        ...

    def at_hand(self, digest: Digest) -> Image | None:
        """The image, if it is in memory."""


class SandboxWorker(Protocol):
    """One worker process."""

    suspect: Slot | None
    """The slot to blame once `lost` is True: the one that `kill` named, else the one whose answer
    was due next; None if no answer was due.
    """
    lost: bool

    def ask(self, about: Slot, message: Question) -> None:
        """Sends a message that will be answered."""

    def tell(self, message: ToWorker) -> None:
        """Sends a message that will not."""

    def take(self, digest: Digest, image: Image) -> None:
        """Adds a reference to the image; the first one sends it (and its engine) to the worker."""

    def leave(self, digest: Digest) -> None:
        """Drops a reference to the image; the last one makes the worker unload it."""

    def resident_bytes(self) -> int:
        """Memory of the process that it shares with no other; 0 when that cannot be told."""
        ...

    def kill(self, why: str, *, suspect: Slot | None = None) -> None:
        """Ends the process; `suspect` is the slot to blame."""


class SandboxWorkers(Protocol):
    """The pool of session workers; `WorkerPool` (machinehub/workers/pool.py) implements it."""

    def choose(self, *, modules: bool = False, machine: str = "") -> SandboxWorker | None:
        """One that is ready, if there is, of those where this machine's sessions live; modules live
        apart from scripts.
        """

    async def wait_for_worker(self, *, modules: bool = False, machine: str = "") -> SandboxWorker:
        """Raises `Unavailable` when none becomes ready for a while."""
        ...
