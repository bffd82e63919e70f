"""What a machine asks of the world, and what it is answered: JSON that the guest and the hub share
(guest/prelude/fetch/index.ts).

A request stands in the outbox of the turn that made it; its answer is an input
(`inputs.answer_input`).
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final, Literal

import msgspec

URL_CHARS_MAX: Final = 8 * 1024
HEADERS_MAX: Final = 100
HEADER_BYTES_MAX: Final = 32 * 1024
"""Of all headers of a request, or of an answer, together."""

Pair = tuple[str, str]


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `fetch` of a machine. At most one of `text` and `base64` is its body."""

    method: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^(?!(?i:CONNECT|TRACE|TRACK)$)[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}\Z",
        ),
    ]
    url: Annotated[str, msgspec.Meta(max_length=URL_CHARS_MAX)]
    headers: Annotated[list[Pair], msgspec.Meta(max_length=HEADERS_MAX)] = []
    text: str | None = None
    base64: str | None = None
    redirect: Literal["follow", "error", "manual"] = "follow"

    @property
    def body(self) -> bytes:
        """Raises `ValueError`."""
        if self.base64 is not None:
            try:
                return base64.b64decode(self.base64, validate=True)
            except binascii.Error as error:
                raise ValueError(str(error)) from None
        return (self.text or "").encode()


class Trouble(msgspec.Struct, frozen=True):
    """Why there is no answer: a code of docs/errors.md, and a sentence for the machine's author."""

    code: str
    detail: str


class Answer(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What `fetch` settles with: a response, or, with `error`, what its promise is rejected
    with.
    """

    status: int = 0
    status_text: str = ""
    url: str = ""
    redirected: bool = False
    headers: list[Pair] = []
    text: str | None = None
    base64: str | None = None
    error: Trouble | None = None

    @property
    def body_bytes(self) -> int:
        """How long the body is, about."""
        if self.base64 is not None:
            return len(self.base64) * 3 // 4
        return len((self.text or "").encode())


def refusal(code: str, detail: str) -> Answer:
    return Answer(error=Trouble(code, detail))


TEXT_BYTES_MAX: Final = 640 * 1024
"""So much room text may take in JSON, which a guest reads faster than base64."""


def spelled(body: bytes) -> dict[str, str]:
    """A body as the field of an `Answer`: as text where it is text, unless what must be escaped in
    JSON makes it longer than the guest has room for.
    """
    in_base64 = (len(body) + 2) // 3 * 4
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}
    if len(msgspec.json.encode(text)) > max(TEXT_BYTES_MAX, in_base64):
        return {"base64": base64.b64encode(body).decode()}
    return {"text": text}


encode_answer: Final = msgspec.json.Encoder().encode
read_request: Final = msgspec.json.Decoder(Request).decode
"""Raises `msgspec.MsgspecError`, `RecursionError` or `UnicodeDecodeError`."""
read_answer: Final = msgspec.json.Decoder(Answer).decode
