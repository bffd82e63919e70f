"""Webhooks: requests by which the world tells a machine of something.

Decides, without I/O: whether a request is who it says (its signature, its age), which session it is
for, and which event it becomes. Sources: Standard Webhooks
(https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md), Stripe
(https://docs.stripe.com/webhooks#verify-manually), GitHub
(https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec

from machinehub.errors import BadRequest, Unauthorised
from sandbox.protocol.nesting import is_deeper_than

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

HOOKS_MAX: Final = 32
"""Of one machine."""
ID_CHARS_MAX: Final = 200
POINTER_CHARS_MAX: Final = 300
_TOLD: Final = (
    "content-type",
    "webhook-id",
    "x-github-delivery",
    "x-github-event",
)
"""Headers that the machine sees: those that are the same when a delivery comes again."""


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table `[[webhooks]]` of machinehub.toml."""

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """It is called at `/{machine}/-/hooks/{name}`."""
    secret: Annotated[str, msgspec.Meta(pattern="^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
    """The name of the project's secret that signs it."""
    scheme: Literal["standard", "stripe", "github"] = "standard"
    session: Annotated[str, msgspec.Meta(max_length=POINTER_CHARS_MAX)] | None = None
    """Where the session's id stands in the body, as a JSON pointer (RFC 6901); None for the path:
    `/{machine}/-/hooks/{name}/{session}`.
    """
    event: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    """The type of the event that the session gets; None for `webhook.<name>`."""
    tolerance_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 300
    """How old it may be, or from how far ahead, where the scheme says when it was sent."""

    @property
    def event_type(self) -> str:
        return self.event or f"webhook.{self.name}"


class Delivery(NamedTuple):
    """A webhook that is who it says."""

    id: str
    payload: Any


def webhooks_of(definition: Mapping[str, Any]) -> list[Webhook]:
    """Those of a version."""
    return msgspec.convert(definition.get("webhooks", []), list[Webhook])


def check_webhooks(webhooks: list[Webhook]) -> None:
    """Raises `BadRequest`."""
    if len(webhooks) > HOOKS_MAX:
        raise BadRequest("invalid_webhook", f"a machine has at most {HOOKS_MAX} webhooks")
    names = [each.name for each in webhooks]
    if len(set(names)) < len(names):
        raise BadRequest("invalid_webhook", "each webhook has a name of its own")
    for each in webhooks:
        if each.session is not None and not each.session.startswith("/"):
            raise BadRequest(
                "invalid_webhook",
                f"webhook {each.name!r}: `session` is a JSON pointer, such as /data/order",
            )
        if each.event_type.startswith(("xstate.", "presence.")):
            raise BadRequest(
                "invalid_webhook", f"webhook {each.name!r}: its event is the hub's own"
            )


def verify(
    webhook: Webhook,
    headers: Mapping[str, str],
    body: bytes,
    secret: str,
    *,
    now_ms: int,
    depth_max: int,
) -> Delivery:
    """What a request delivers. `headers` are in lower case. Raises `Unauthorised`, `BadRequest`."""
    id_ = _SCHEMES[webhook.scheme](webhook, headers, body, secret, now_ms // 1000)
    try:
        if is_deeper_than(body, depth_max):
            raise BadRequest("event_too_deep", f"the body nests more than {depth_max} levels")
        payload = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadRequest("invalid_json", "the body is not JSON") from None
    if id_ is None:
        id_ = payload.get("id") if isinstance(payload, dict) else None
    if not isinstance(id_, str) or not 1 <= len(id_) <= ID_CHARS_MAX or not id_.isprintable():
        raise BadRequest("invalid_webhook", "the delivery has no id")
    return Delivery(id_, payload)


def session_of(webhook: Webhook, payload: Any) -> str:
    """Raises `BadRequest`."""
    if webhook.session is None:
        raise BadRequest(
            "no_session", "the path names no session: /{machine}/-/hooks/{name}/{session}"
        )
    found = at_pointer(payload, webhook.session)
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise BadRequest("no_session", f"there is no session's id at {webhook.session} of the body")
    return str(found)


def event_of(webhook: Webhook, headers: Mapping[str, str], body: bytes) -> bytes:
    """What the machine gets, as JSON."""
    told = {name: headers[name] for name in _TOLD if name in headers}
    return b'{"type":%b,"payload":%b,"headers":%b}' % (
        msgspec.json.encode(webhook.event_type),
        body.strip(),
        msgspec.json.encode(told),
    )


def at_pointer(value: Any, pointer: str) -> Any:
    """What stands at a JSON pointer (RFC 6901); None for nothing."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isascii() and name.isdecimal() and len(name) < 10:
            value = value[int(name)] if int(name) < len(value) else None
        else:
            return None
    return value


# --- schemes --------------------------------------------------------------------------------------


def _standard(
    webhook: Webhook, headers: Mapping[str, str], body: bytes, secret: str, now_s: int
) -> str | None:
    id_, sent = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    _check_age(webhook, sent, now_s)
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = secret.encode()
    signed = hmac.digest(key, b"%b.%b.%b" % (id_.encode(), sent.encode(), body), "sha256")
    wanted = b"v1," + base64.b64encode(signed)
    _check_any(headers.get("webhook-signature", "").split(), wanted)
    return id_


def _stripe(
    webhook: Webhook, headers: Mapping[str, str], body: bytes, secret: str, now_s: int
) -> str | None:
    said = [part.strip().partition("=") for part in headers.get("stripe-signature", "").split(",")]
    sent = next((value for name, _, value in said if name == "t"), "")
    _check_age(webhook, sent, now_s)
    signed = hmac.digest(secret.encode(), b"%b.%b" % (sent.encode(), body), "sha256")
    _check_any([value for name, _, value in said if name == "v1"], signed.hex().encode())
    return None


def _github(
    _webhook: Webhook, headers: Mapping[str, str], body: bytes, secret: str, _now_s: int
) -> str | None:
    wanted = b"sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().encode()
    _check_any([headers.get("x-hub-signature-256", "")], wanted)
    return headers.get("x-github-delivery", "")


_SCHEMES: Final[dict[str, Callable[[Webhook, Mapping[str, str], bytes, str, int], str | None]]] = {
    "standard": _standard,
    "stripe": _stripe,
    "github": _github,
}


def _check_any(given: list[str], wanted: bytes) -> None:
    """In constant time. Raises `Unauthorised`."""
    found = [hmac.compare_digest(each.encode(errors="replace"), wanted) for each in given[:16]]
    if not any(found):
        raise Unauthorised("invalid_signature", "the signature is not this webhook's")


def _check_age(webhook: Webhook, sent: str, now_s: int) -> None:
    """Raises `Unauthorised`."""
    if not sent.isascii() or not sent.isdecimal() or len(sent) > 12:
        raise Unauthorised("invalid_signature", "the delivery does not say when it was sent")
    if abs(now_s - int(sent)) > webhook.tolerance_s:
        raise Unauthorised("invalid_signature", "the delivery is too old, or from the future")
