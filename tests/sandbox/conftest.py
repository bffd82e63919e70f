from __future__ import annotations

import pytest

from tests.sandbox.sandboxes import Sandbox


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox()
