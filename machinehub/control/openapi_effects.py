"""The API's description: what machines ask of the world, and what it tells them."""

from __future__ import annotations

from typing import Any, Final

from machinehub.control.schemas import (
    ANY,
    PAGE,
    TEXT,
    answer,
    call,
    in_path,
    list_of,
    object_of,
    ref,
)

_NUMBER: Final[dict[str, Any]] = {"type": "integer"}
_OPTIONAL_NUMBER: Final[dict[str, Any]] = {"type": ["integer", "null"]}
_OPTIONAL_TEXT: Final[dict[str, Any]] = {"type": ["string", "null"]}
_TEXTS: Final[dict[str, Any]] = {"type": "array", "items": TEXT}


def effect_paths() -> dict[str, Any]:
    session = [in_path("machine"), in_path("session")]
    project = [in_path("project")]
    effects = "/api/v1/machines/{machine}/sessions/{session}/effects"
    return {
        effects: {
            "parameters": session,
            "get": call(
                "What the session asked of the world, the newest first",
                {"200": answer("A page", list_of("Effect"))},
                parameters=PAGE,
            ),
        },
        effects + "/{effect}/cancel": {
            "parameters": [*session, in_path("effect", "integer")],
            "post": call(
                "Reject a request that waits, as if the machine had aborted it",
                {"204": answer("The machine knows")},
            ),
        },
        effects + "/{effect}/answer": {
            "parameters": [*session, in_path("effect", "integer")],
            "post": call(
                "Answer a request that waits, in the world's place",
                {"204": answer("The machine has it")},
                body=ref("EffectAnswer"),
            ),
        },
        "/api/v1/projects/{project}/secrets": {
            "parameters": project,
            "get": call(
                "List secrets, without what they are", {"200": answer("All", list_of("Secret"))}
            ),
        },
        "/api/v1/projects/{project}/secrets/{name}": {
            "parameters": [*project, in_path("name")],
            "put": call(
                "Set a secret, for the hosts that it may be sent to",
                {"200": answer("It is set", ref("Secret"))},
                body=ref("SecretBody"),
            ),
            "delete": call("Delete a secret", {"204": answer("It is gone")}),
        },
        "/api/v1/secrets/rotate": {
            "post": call(
                "Seal all secrets with the hub's newest key",
                {"200": answer("How many there are, and the key's id", ref("SecretsRotated"))},
            ),
        },
        "/{machine}/-/hooks/{name}": {
            "parameters": [in_path("machine"), in_path("name")],
            "post": _hook("its session is named in the body"),
        },
        "/{machine}/-/hooks/{name}/{session}": {
            "parameters": [*session, in_path("name")],
            "post": _hook("for this session"),
        },
    }


def _hook(which: str) -> dict[str, Any]:
    return call(
        f"A webhook, {which}",
        {"200": answer("Its event is committed", object_of("seq", seq=_OPTIONAL_NUMBER))},
        body=ANY,
        open_to_all=True,
    )


EFFECT_SCHEMAS: Final[dict[str, Any]] = {
    "Effect": object_of(
        "id seq ordinal state at request tries next_try_at trouble outcome status ms ended_at"
        " ended_seq",
        id=_NUMBER,
        seq=_NUMBER,
        ordinal=_NUMBER,
        state={"enum": ["pending", "held", "ended"]},
        at=TEXT,
        request=object_of(
            "method url headers",
            method=TEXT,
            url=TEXT,
            headers={"type": "array", "items": _TEXTS},
            text=TEXT,
            base64=TEXT,
            redirect=TEXT,
        ),
        tries=_NUMBER,
        next_try_at=_OPTIONAL_TEXT,
        trouble=_OPTIONAL_TEXT,
        outcome=_OPTIONAL_TEXT,
        status=_OPTIONAL_NUMBER,
        ms=_OPTIONAL_NUMBER,
        ended_at=_OPTIONAL_TEXT,
        ended_seq=_OPTIONAL_NUMBER,
    ),
    "EffectAnswer": object_of(
        "",
        status={"type": "integer", "minimum": 200, "maximum": 599},
        headers={"type": "object", "additionalProperties": TEXT},
        json=ANY,
        text=_OPTIONAL_TEXT,
        base64=_OPTIONAL_TEXT,
        error=_OPTIONAL_TEXT,
    )
    | {"required": [], "additionalProperties": False},
    "Secret": object_of(
        "name hosts key created_at changed_at",
        name=TEXT,
        hosts=_TEXTS,
        key=TEXT,
        created_at=TEXT,
        changed_at=TEXT,
    ),
    "SecretBody": object_of("value", value=TEXT, hosts=_TEXTS) | {"additionalProperties": False},
    "SecretsRotated": object_of("secrets key", secrets=_NUMBER, key=TEXT),
    "Egress": object_of(
        "",
        allow=_TEXTS,
        methods={"type": ["array", "null"], "items": TEXT},
        timeout_s={"type": "number"},
        response_bytes=_NUMBER,
        redirects=_NUMBER,
        per_second=_NUMBER,
        in_flight=_NUMBER,
        tries=_NUMBER,
        within_s={"type": "number"},
    )
    | {"required": [], "additionalProperties": False},
    "Webhook": object_of(
        "name secret",
        name=TEXT,
        secret=TEXT,
        scheme={"enum": ["standard", "stripe", "github"]},
        session=_OPTIONAL_TEXT,
        event=_OPTIONAL_TEXT,
        tolerance_s=_NUMBER,
    )
    | {"additionalProperties": False},
}
