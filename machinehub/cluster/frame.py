"""What everything that nodes say to each other is made of."""

from __future__ import annotations

import msgspec


class Frame(msgspec.Struct, array_like=True, gc=False):
    """Fields are added at the end, with a default: nodes of neighbouring versions read them."""
