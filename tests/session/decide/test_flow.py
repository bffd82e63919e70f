"""How much of a session's queue its worker gets."""

from __future__ import annotations

import pytest

from machinehub.session.decide.flow import SendWindow

pytestmark = pytest.mark.core


def test_a_session_sends_a_few_inputs_ahead_and_a_heavy_one_waits() -> None:
    window = SendWindow()
    assert [window.next(5), window.next(5)] == [0, None], "before anything is known, one at a time"
    window.estimate.took(60)
    assert window.settled(overran=False) == 0
    assert [window.next(5), window.next(5), window.next(5)] == [0, 1, None]
    assert [window.settled(overran=True), window.next(5)] == [0.1, None]
    window.resume()
    assert window.next(5) is None  # the second is still on its way
    assert window.settled(overran=True) == 0.2
    assert [window.settled(overran=True) for _ in range(6)] == [0.4, 0.8, 1.6, 1.6, 1.6, 1.6]
    window.resume()
    window.restart()
    for _ in range(20):
        assert window.next(5) == 0
        assert window.settled(overran=False) == 0
    assert [window.next(20) for _ in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, None, None]
    assert window.next(3) is None
