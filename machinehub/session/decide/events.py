"""What clients send: which bytes may be an event, a session's `input`, or a member's metadata.

Decides without I/O. An event reaches the machine as it was sent; only what the hub must know of it
is decoded here.
"""

from __future__ import annotations

import msgspec

from machinehub.errors import BadRequest, CallerError, InvalidEvent, TooLarge
from sandbox.protocol.nesting import depth_of, is_deeper_than

_RESERVED = ("xstate.", "presence.")
_ROUTE = "xstate.route"
"""XState's public way to go to a state that has a `route`."""
EVENT_ID_CHARS_MAX = 256


class _Head(msgspec.Struct):
    type: str


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode


def check_event(raw: bytes | msgspec.Raw, *, bytes_max: int, depth_max: int) -> str:
    """The type of an event. Raises a `CallerError` unless `raw` is the JSON of one that a client
    may send.
    """
    data = bytes(raw)
    if len(data) > bytes_max:
        raise TooLarge("event_too_large", f"an event has at most {bytes_max} bytes")
    try:
        head = _decode_head(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _why_not(data, error, depth_max=depth_max) from None
    if not head.type:
        raise InvalidEvent("invalid_event", "an event's type is a string that is not empty")
    if head.type.startswith(_RESERVED) and not is_route(head.type):
        raise InvalidEvent(
            "invalid_event",
            f"types that begin with {' or '.join(_RESERVED)} are the hub's own, except {_ROUTE}",
        )
    if is_deeper_than(data, depth_max):
        raise BadRequest("event_too_deep", f"an event nests at most {depth_max} levels")
    if not data.isascii():
        check_utf8(data)
    return head.type


def is_route(type_: str) -> bool:
    """Whether it is one of the types of XState's own that clients may send."""
    return type_ == _ROUTE or type_.startswith(_ROUTE + ".")


def check_metadata(raw: bytes, *, bytes_max: int, depth_max: int) -> bytes:
    """The same for what a member says of itself: any JSON value, null for nothing.

    Returns it without white space: others' streams are lines.
    """
    if len(raw) > bytes_max:
        raise TooLarge("metadata_too_large", f"a member's metadata has at most {bytes_max} bytes")
    _check_value(
        raw,
        depth_max,
        BadRequest("invalid_metadata", f"metadata is JSON that nests at most {depth_max} levels"),
    )
    return msgspec.json.format(raw, indent=-1)


def check_input(raw: bytes, *, bytes_max: int, depth_max: int) -> None:
    """The same for a session's `input`, which may be any JSON value."""
    if len(raw) > bytes_max:
        raise TooLarge("input_too_large", f"a session's input has at most {bytes_max} bytes")
    if depth_of(raw) > depth_max:
        raise BadRequest("input_too_deep", f"an input nests at most {depth_max} levels")
    _check_value(raw, depth_max, BadRequest("invalid_input", "the input is not JSON"))


def _check_value(raw: bytes, depth_max: int, otherwise: BadRequest) -> None:
    if depth_of(raw) > depth_max:
        raise otherwise
    try:
        check_utf8(raw)
        _decode_any(raw)
    except (msgspec.MsgspecError, RecursionError):
        raise otherwise from None


def _why_not(data: bytes, error: Exception, *, depth_max: int) -> CallerError:
    if isinstance(error, RecursionError) or depth_of(data) > depth_max:
        return BadRequest("event_too_deep", "the event nests too deeply")
    if isinstance(error, msgspec.ValidationError):
        return InvalidEvent(
            "invalid_event", 'an event is a JSON object with a "type" that is a string'
        )
    return InvalidEvent("invalid_event", f"the event is not JSON: {error}"[:300])


def check_utf8(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError:
        raise BadRequest("invalid_utf8", "the text is not UTF-8") from None
