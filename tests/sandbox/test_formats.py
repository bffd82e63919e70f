"""Versions of what is kept: old checkpoints are read, newer ones refused, unknown inputs refused by
the guest.
"""

from __future__ import annotations

import pytest

from sandbox.protocol.formats import (
    CHECKPOINT,
    CHECKPOINT_MAGIC,
    UnknownFormat,
    checkpoint_digest,
    with_header,
    without_header,
)

pytestmark = pytest.mark.core

BODY = bytes(range(16)) + b"content"


def test_a_checkpoint_is_read_with_and_without_a_header() -> None:
    for kept in (BODY, with_header(BODY)):
        assert without_header(kept) == BODY
        assert checkpoint_digest(kept) == BODY[:16].hex()


@pytest.mark.parametrize("version", [0, 1, CHECKPOINT + 1, 255])
def test_a_checkpoint_of_a_version_that_nobody_here_wrote_is_refused(version: int) -> None:
    with pytest.raises(UnknownFormat, match="does not know"):
        without_header(CHECKPOINT_MAGIC + bytes([version]) + BODY)


def test_a_checkpoint_that_ends_in_its_header_is_refused() -> None:
    with pytest.raises(UnknownFormat):
        without_header(CHECKPOINT_MAGIC)
