"""Requests of machines that leave the hub: under the rules of the machine, its project and the hub,
with the project's secrets in their headers.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote

from machinehub.effects.asked import Again
from machinehub.effects.retries import may_pass, retry_after_s
from machinehub.egress.addresses import EgressError
from machinehub.egress.client import Outgoing
from machinehub.egress.rules import check_request, host_fits
from sandbox.protocol.effects import HEADER_BYTES_MAX, Answer, refusal, spelled

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from machinehub.clock import Clock
    from machinehub.effects.asked import Asked
    from machinehub.effects.secrets import Secret
    from machinehub.egress.client import Egress, Incoming
    from machinehub.egress.rules import Target
    from machinehub.ids import ProjectId
    from sandbox.protocol.effects import Pair

PLACEHOLDER: Final = re.compile(r"\{\{secret:([A-Za-z_][A-Za-z0-9_]{0,63})\}\}")
"""What `secret("NAME")` is in a machine (guest/prelude/fetch/index.ts)."""
REDACTED_CHARS_MIN: Final = 4
"""A shorter secret is found in many a text by chance."""
_OF_URLS: Final = str.maketrans("+/", "-_", "=")
"""To base64url without padding (RFC 4648, section 5)."""
_BASIC: Final = re.compile(r"basic +([A-Za-z0-9+/]+={0,2}) *", re.IGNORECASE)
_Spellings = list[tuple[str, str]]
IDEMPOTENCY_KEY: Final = "Idempotency-Key"


class Vault(Protocol):
    """Who has the secrets of projects."""

    async def reveal(self, project: ProjectId, names: Collection[str]) -> dict[str, Secret]:
        """Those of these names that there are. Raises `Unavailable`."""
        ...


class Outside:
    """A `Carrier`."""

    def __init__(self, egress: Egress, vault: Vault, clock: Clock) -> None:
        self._egress = egress
        self._vault = vault
        self._clock = clock

    async def __call__(self, asked: Asked) -> Answer:
        request, rules = asked.request, asked.leave.rules
        headers = list(request.headers)
        if all(name.lower() != IDEMPOTENCY_KEY.lower() for name, _ in headers):
            headers.append((IDEMPOTENCY_KEY, asked.idempotency_key))
        texts = [text for name, value in headers for text in (value, _credentials(name, value))]
        names = {name for text in texts for name in PLACEHOLDER.findall(text)}
        secrets = await self._vault.reveal(asked.leave.project, names) if names else {}
        spellings = _spellings(secrets, headers)
        try:
            outgoing = Outgoing(
                request.method,
                request.url,
                headers,
                request.body,
                request.redirect,
                rules.redirects,
                rules.response_bytes,
                HEADER_BYTES_MAX,
                rules.timeout_s,
                owner=asked.leave.project,
            )
        except ValueError:
            return refusal("invalid_request", "the body is no base64")
        try:
            incoming = await self._egress.send(
                outgoing,
                check=lambda method, target: check_request(
                    rules, asked.leave.bounds, method, target
                ),
                fill=lambda given, target: [
                    (name, _filled_header(name, value, secrets, target)) for name, value in given
                ],
            )
        except EgressError as error:
            refused = refusal(error.code, _redacted(error.detail, spellings))
            if error.is_passing:
                raise Again(refused, refused.error.detail if refused.error else "") from None
            return refused
        body = incoming.body
        for spelling, placeholder in spellings:
            body = body.replace(spelling.encode(), placeholder.encode())
        if len(body) > rules.response_bytes:  # a secret's name may be longer than itself
            return refusal(
                "response_too_large", f"the answer has more than {rules.response_bytes} bytes"
            )
        answer = _answer(incoming, body, spellings)
        if may_pass(request.method, answer.status):
            after = dict(incoming.headers).get("retry-after")
            after_s = retry_after_s(after, self._clock.now_ms())
            raise Again(answer, f"the answer is {answer.status}", after_s)
        return answer


def _credentials(name: str, value: str) -> str:
    """Who a header of basic authentication says is there (RFC 7617), if a secret is in that."""
    found = _BASIC.fullmatch(value) if name.lower() == "authorization" else None
    if found is None:
        return ""
    try:  # each byte a letter, as `btoa` has them: secrets are ASCII
        text = base64.b64decode(found[1], validate=True).decode("latin-1")
    except binascii.Error:
        return ""
    return text if PLACEHOLDER.search(text) else ""


def _basic(credentials: str) -> str:
    return base64.b64encode(credentials.encode("latin-1")).decode()


def _filled_header(name: str, value: str, secrets: Mapping[str, Secret], target: Target) -> str:
    """Raises `EgressError`."""
    if credentials := _credentials(name, value):
        return f"Basic {_basic(_filled(credentials, secrets, target))}"
    return _filled(value, secrets, target)


def _filled(value: str, secrets: Mapping[str, Secret], target: Target) -> str:
    """A header's value with the secrets that it names. Raises `EgressError`."""

    def of(found: re.Match[str]) -> str:
        name = found[1]
        secret = secrets.get(name)
        if secret is None:
            raise EgressError("no_such_secret", f"the project has no secret {name}")
        if target.scheme != "https":
            raise EgressError("secret_refused", f"the secret {name} is sent over https alone")
        if not any(host_fits(host, target.host) for host in secret.hosts):
            raise EgressError("secret_refused", f"the secret {name} is not for {target.host[:200]}")
        return secret.value

    return PLACEHOLDER.sub(of, value)


def _answer(incoming: Incoming, body: bytes, spellings: _Spellings) -> Answer:
    """What the machine gets. Who was sent a secret may send it back: it stays outside all the
    same.
    """
    return Answer(
        incoming.status,
        _redacted(incoming.reason, spellings)[:200],
        _redacted(incoming.url, spellings),
        incoming.redirected,
        [
            (_redacted(name, spellings), _redacted(value, spellings))
            for name, value in incoming.headers
        ],
        **spelled(body),  # type: ignore[arg-type]
    )


def _redacted(text: str, spellings: _Spellings) -> str:
    for spelling, placeholder in spellings:
        text = text.replace(spelling, placeholder)
    return text


def _spellings(secrets: Mapping[str, Secret], headers: list[Pair]) -> _Spellings:
    """How secrets may come back, and what stands in their place; the longest first, of which
    another may be a part.
    """
    found = {
        spelling: _placeholder(name)
        for name, secret in secrets.items()
        if len(secret.value) >= REDACTED_CHARS_MIN
        for spelling in _spelled(secret.value)
    }
    for name, value in headers:
        if credentials := _credentials(name, value):
            sent = PLACEHOLDER.sub(
                lambda each: secrets[each[1]].value if each[1] in secrets else each[0], credentials
            )
            for spelling in _spelled(_basic(sent)):
                found[spelling] = _basic(credentials)
                found[spelling.translate(_OF_URLS)] = _basic(credentials)
    return sorted(found.items(), key=lambda each: -len(each[0]))


def _spelled(text: str) -> tuple[str, ...]:
    """As it is, in JSON (of which some escape slashes) and in a URL."""
    in_json = json.dumps(text)[1:-1]
    return text, in_json, in_json.replace("/", "\\/"), quote(text, safe="")


def _placeholder(name: str) -> str:
    return "{{secret:" + name + "}}"


def shown_headers(headers: list[Pair]) -> list[Pair]:
    """Headers as people may see them: what lets somebody in is left out."""
    return [(name, "…" if _LETS_IN.search(name) else value) for name, value in headers]


_LETS_IN: Final = re.compile(r"auth|cookie|token|secret|api-?key|signature|password", re.IGNORECASE)
