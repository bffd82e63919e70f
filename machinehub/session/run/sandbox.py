"""What sessions need of workers and images. `machinehub/workers` and the catalog give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from machinehub.ids import Digest
    from machinehub.model import Image
    from sandbox.protocol.ids import Slot
    from sandbox.protocol.messages import Question, ToWorker


class Images(Protocol):
    async def image(self, digest: Digest) -> Image:
        """Raises `NotFound`, `Unavailable`."""
        ...

    def at_hand(self, digest: Digest) -> Image | None:
        """The image, if it is in memory."""


class SandboxWorker(Protocol):
    """One worker process."""

    suspect: Slot | None
    """Of one that is lost: the slot that it worked on when it died."""
    lost: bool

    def ask(self, about: Slot, message: Question) -> None:
        """Sends a message that will be answered."""

    def tell(self, message: ToWorker) -> None:
        """Sends a message that will not."""

    def take(self, digest: Digest, image: Image) -> None:
        """Another session of this image comes to live here."""

    def leave(self, digest: Digest) -> None:
        """A session of this image is gone from here."""

    def kill(self, why: str, *, suspect: Slot | None = None) -> None:
        """Ends the process; `suspect` is the slot to blame."""


class SandboxWorkers(Protocol):
    def choose(self, *, modules: bool = False, machine: str = "") -> SandboxWorker | None:
        """One that is ready, if there is, of those where this machine's sessions live; modules live
        apart from scripts.
        """

    async def wait_for_worker(self, *, modules: bool = False, machine: str = "") -> SandboxWorker:
        """Raises `Unavailable` when none becomes ready for a while."""
        ...
