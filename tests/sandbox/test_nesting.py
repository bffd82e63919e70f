"""How deeply JSON is nested, counted without reading it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.protocol.nesting import depth_of

pytestmark = pytest.mark.core


@given(
    st.recursive(
        st.none() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_depth_is_counted_outside_strings(value: object) -> None:
    def depth(part: object) -> int:
        parts = (
            part
            if isinstance(part, list)
            else list(part.values())
            if isinstance(part, dict)
            else None
        )
        return 0 if parts is None else 1 + max(map(depth, parts), default=0)

    assert depth_of(msgspec.json.encode(value)) == depth(value)
