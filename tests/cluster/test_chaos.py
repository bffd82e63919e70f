"""A few of the faults of `make chaos-cluster`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.chaos import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("chaos")


async def test_a_cluster_under_faults(tmp_path: Path) -> None:
    await run(tmp_path, seed=3, faults=6)
