"""Events and inputs as clients send them: what is refused, before a machine sees it."""

from __future__ import annotations

import pytest

from machinehub.errors import BadRequest, CallerError, TooLarge
from machinehub.session.decide.events import check_event, check_input
from machinehub.session.decide.identity import Identity
from sandbox.protocol.inputs import event_input
from sandbox.protocol.nesting import depth_of

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (b"", "invalid_event"),
        (b"nonsense", "invalid_event"),
        (b"[]", "invalid_event"),
        (b"null", "invalid_event"),
        (b"{}", "invalid_event"),
        (b'{"type":1}', "invalid_event"),
        (b'{"type":""}', "invalid_event"),
        (b'{"type":null}', "invalid_event"),
        (b'{"type":"a"', "invalid_event"),
        (b'{"type":"a"}x', "invalid_event"),
        (b'{"type":"a","v":NaN}', "invalid_event"),
        (b'{"type":"a","v":Infinity}', "invalid_event"),
        (b'{"type":"xstate.stop"}', "invalid_event"),
        (b'{"type":"xstate.done.actor.x","output":1}', "invalid_event"),
        (b'{"type":"presence.joined"}', "invalid_event"),
        (b'{"type":"a","type":"xstate.init"}', "invalid_event"),
        (b'{"type":"a","v":' + b"[" * 64 + b"]" * 64 + b"}", "event_too_deep"),
        (b'{"type":"a","v":' + b"[" * 60_000, "event_too_deep"),
        (b'{"type":"a","v":"' + b"x" * 65536 + b'"}', "event_too_large"),
        (b'{"type":"a","v":"\xff"}', "invalid_utf8"),
        (b'{"type":"a","v":"\xed\xa0\x80"}', "invalid_utf8"),
        (b'{"type":"a","v":"\\ud800"}', "invalid_event"),
    ],
)
def test_bad_events_are_refused_with_a_code(event: bytes, code: str) -> None:
    with pytest.raises(CallerError) as refused:
        check_event(event, bytes_max=65536, depth_max=64)
    assert (
        refused.value.code in {code, "invalid_event"}
        if code == "invalid_utf8"
        else refused.value.code == code
    )


@pytest.mark.parametrize(
    "event",
    [
        b'{"type":"a"}',
        b' {"type":"a"} ',
        b'{"type":"\xc3\xa9"}',
        b'{"type":"a","__proto__":{"x":1},"constructor":2}',
        b'{"type":"a","v":' + b"[" * 63 + b"]" * 63 + b"}",
        b'{"type":"a","v":"' + b"[" * 200 + b'"}',
        b'{"type":"a","v":1e400}',
        b'{"type":"a",' + b",".join(b'"%d":1' % n for n in range(5000)) + b"}",
        b'{"type":"a","v":"' + b"x" * (65536 - 20) + b'"}',
    ],
)
def test_odd_events_are_let_through(event: bytes) -> None:
    check_event(event, bytes_max=65536, depth_max=64)


def test_inputs_are_any_json() -> None:
    check_input(b"[1,2]", bytes_max=100, depth_max=64)
    for bad, kind in ((b"{", BadRequest), (b"[" * 70, BadRequest), (b"1" * 101, TooLarge)):
        with pytest.raises(kind):
            check_input(bad, bytes_max=100, depth_max=64)


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 200_000,
        b"[" + b'"' + b'\\"' * 200_000,
        b'"\\\n' * 100_000,
        b'"' * 400_001,
    ],
)
def test_a_text_without_end_is_read_once(text: bytes) -> None:
    """Each quotation mark of a string that never ended began a look through all the rest."""
    assert depth_of(text) <= 1
    with pytest.raises(CallerError):
        check_event(text[:65_000], bytes_max=65_536, depth_max=64)


def test_an_input_is_json_with_the_event_as_it_was_sent() -> None:
    data = event_input(7, b'{"type":"a", "n":1.0}', Identity("c1", 'u"1').sender)
    assert data == b'[1,7,{"type":"a", "n":1.0},{"id":"c1","user":"u\\"1"}]'
