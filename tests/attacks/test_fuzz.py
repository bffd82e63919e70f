"""Seconds of the fuzzer (`make fuzz` goes on for minutes): the same seeds every time, so that a
failure is the change's.
"""

from __future__ import annotations

import pytest

from tests.attacks import fuzz

pytestmark = pytest.mark.core

TRIES = 400


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_hostile_bytes_are_read_or_refused(target: str) -> None:
    for seed in range(TRIES):
        try:
            fuzz.run(target, seed)
        except BaseException as error:
            raise AssertionError(f"python -m tests.attacks.fuzz {target} --seed {seed}") from error
