"""The catalogue of machines: which images it keeps at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.control import catalog as catalog_module
from tests.support import COUNTER, running_hub

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from machinehub.ids import Digest


async def test_the_image_that_was_used_longest_ago_is_forgotten_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "IMAGES_REMEMBERED", 2)
    async with running_hub(tmp_path) as client:
        digests: list[Digest] = []
        catalog = client.hub.catalog
        for number in range(3):
            machine = await client.deploy(f"{COUNTER}\n// {number}", name=f"lru-{number}")
            digests.append((await client.hub.store.version(machine, 1)).digest)  # type: ignore[arg-type]
            await catalog.image(digests[0])  # the first one stays in use
        first, second, third = (catalog.at_hand(digest) is not None for digest in digests)
        assert (first, second, third) == (True, False, True)
