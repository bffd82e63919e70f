"""Which checkpoints of a session are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinehub.store.retention import superfluous

if TYPE_CHECKING:
    from machinehub.ids import Seq

pytestmark = pytest.mark.core


@given(
    st.lists(st.integers(1, 4000), max_size=40, unique=True),
    st.integers(1, 5),
    st.integers(0, 1500),
)
def test_which_checkpoints_are_kept(seqs: list[Seq], newest: int, every: int) -> None:
    seqs = sorted(seqs)
    kept = [seq for seq in seqs if seq not in superfluous(seqs, newest=newest, every=every)]
    assert kept[-newest:] == seqs[-newest:]
    if every:
        assert len({seq // every for seq in seqs} - {0}) <= len({seq // every for seq in kept})
    assert superfluous(kept, newest=newest, every=every) == []
