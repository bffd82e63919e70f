"""The shapes of the API's requests and answers, as JSON Schema, and how a call is described
(OpenAPI 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machinehub.calendar import ENTRIES_MAX
from machinehub.control.uploads import NAME
from machinehub.limits import MachineLimits
from machinehub.model import SCOPES, Quotas

if TYPE_CHECKING:
    from machinehub.limits import Limits

JSON = "application/json"


def ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def answer(
    description: str, schema: dict[str, Any] | None = None, media_type: str = JSON
) -> dict[str, Any]:
    return (
        {"description": description, "content": {media_type: {"schema": schema}}}
        if schema is not None
        else {"description": description}
    )


_PROBLEM = answer("What went wrong", ref("Problem"), "application/problem+json")


def call(
    summary: str,
    answers: dict[str, dict[str, Any]],
    *,
    body: dict[str, Any] | None = None,
    body_required: bool = True,
    parameters: list[dict[str, Any]] | None = None,
    open_to_all: bool = False,
) -> dict[str, Any]:
    call: dict[str, Any] = {"summary": summary, "responses": answers | {"default": _PROBLEM}}
    if body is not None:
        call["requestBody"] = {"required": body_required, "content": {JSON: {"schema": body}}}
    if parameters:
        call["parameters"] = parameters
    if open_to_all:
        call["security"] = []
    return call


def in_path(name: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}}


PAGE = [
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 500, "default": 100},
    },
    {"name": "cursor", "in": "query", "schema": {"type": "string"}},
]

WHERE = [
    {
        "name": "from",
        "in": "query",
        "schema": {"type": "integer", "minimum": 0},
        "description": "the seq to begin with",
    },
    {
        "name": "after",
        "in": "query",
        "schema": {"type": "string", "pattern": "^[0-9]+\\.[0-9]+$"},
        "description": "an entry that is known, as seq.attempt: those behind it",
    },
]
COST = [{"name": "cost", "in": "query", "schema": {}, "description": "1: say what the turn cost"}]
AT = [
    {
        "name": "at",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1},
        "description": "the seq of the input after which to look",
    }
]


def list_of(of: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["data", "next"],
        "properties": {
            "data": {"type": "array", "items": ref(of)},
            "next": {"type": ["string", "null"]},
        },
    }


def object_of(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": f"^{NAME.pattern}$"}
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_SOME_TEXT = {"type": "string", "minLength": 1, "maxLength": 200}
_NUMBER = {"type": "integer"}
_FLAG = {"type": "boolean"}
_NUMBERS = {"type": "object", "additionalProperties": {"type": "number"}}
_QUOTAS = {
    "type": "object",
    "properties": {
        name: {"type": ["number" if "per_s" in name else "integer", "null"], "minimum": 1}
        for name in Quotas.__struct_fields__
        if name != "egress"
    }
    | {"egress": {"type": ["array", "null"], "items": {"type": "string"}}},
    "additionalProperties": False,
}
ANY: dict[str, Any] = {}

SCHEMAS: dict[str, Any] = {
    "Problem": object_of(
        "type title status detail code",
        type=TEXT,
        title=TEXT,
        status=_NUMBER,
        detail=TEXT,
        code=TEXT,
        errors={"type": "array", "items": ref("BuildMessage")},
    ),
    "BuildMessage": object_of(
        "message",
        message=TEXT,
        file={"type": ["string", "null"]},
        line={"type": ["integer", "null"]},
        column={"type": ["integer", "null"]},
    ),
    "Upload": object_of(
        "name entry files",
        name=_NAME,
        entry=TEXT,
        files={"type": "object", "additionalProperties": TEXT},
        message=TEXT,
        activate=_FLAG,
        strict=_FLAG,
        payloads={"type": "object", "additionalProperties": {"type": "array"}},
        machine={
            "type": "object",
            "properties": {
                "on_error": {"enum": ["reject", "stop"]},
                "transitions": {"enum": ["compiled", "library"]},
            },
        },
        limits={
            "type": "object",
            "properties": {
                name: {"type": "integer", "minimum": 1} for name in MachineLimits.__struct_fields__
            },
            "additionalProperties": False,
        },
        access={"type": "array", "items": ref("Rule")},
        cron={"type": "array", "maxItems": ENTRIES_MAX, "items": ref("CronEntry")},
        egress=ref("Egress"),
        webhooks={"type": "array", "items": ref("Webhook")},
        private={"type": ["boolean", "null"]},
    ),
    "Rule": object_of(
        "events",
        events={"type": "array", "minItems": 1, "items": _SOME_TEXT},
        states={"type": ["array", "null"], "minItems": 1, "items": _SOME_TEXT},
        roles={"type": ["array", "null"], "items": _SOME_TEXT},
        sub={"type": ["string", "null"], "minLength": 1},
    )
    | {"additionalProperties": False},
    "CronEntry": object_of(
        "name expression session event",
        name=_NAME,
        expression=TEXT | {"maxLength": 200},
        zone=TEXT | {"maxLength": 100},
        session=TEXT,
        event={"type": ["string", "object"]},
        catch_up={"enum": ["all", "last", "none"]},
    )
    | {"additionalProperties": False},
    "Cron": object_of(
        "name expression zone session event catch_up next_at runs",
        name=TEXT,
        expression=TEXT,
        zone=TEXT,
        session=TEXT,
        event={"type": "object"},
        catch_up={"enum": ["all", "last", "none"]},
        next_at=_OPTIONAL_TEXT,
        runs={"type": "array", "items": ref("CronRun")},
    ),
    "CronRun": object_of(
        "at ran_at outcome detail seq",
        at=TEXT,
        ran_at=TEXT,
        outcome=TEXT,
        detail=TEXT,
        seq={"type": ["integer", "null"]},
    ),
    "Deployment": object_of(
        "machine version created timings_ms warnings",
        machine=object_of("id name url private", id=TEXT, name=TEXT, url=TEXT, private=_FLAG),
        version=object_of("number digest engine", number=_NUMBER, digest=TEXT, engine=TEXT),
        created=_FLAG,
        timings_ms=object_of(
            "bundle freeze total",
            bundle={"type": "number"},
            freeze={"type": "number"},
            total={"type": "number"},
        ),
        warnings={"type": "array", "items": TEXT},
    ),
    "Machine": object_of(
        "id name url created_at active_version private project",
        id=TEXT,
        name=TEXT,
        url=TEXT,
        created_at=TEXT,
        active_version={"type": ["integer", "null"]},
        private=_FLAG,
        project=TEXT,
        version=ref("Version"),
    ),
    "MachinePatch": object_of(
        "",
        name={"type": ["string", "null"], "pattern": f"^{NAME.pattern}$"},
        private={"type": ["boolean", "null"]},
    )
    | {"required": []},
    "Version": object_of(
        "number digest engine entry message created_at warnings",
        number=_NUMBER,
        digest=TEXT,
        engine=TEXT,
        entry=TEXT,
        message=TEXT,
        created_at=TEXT,
        warnings={"type": "array", "items": TEXT},
        active=_FLAG,
        definition=ANY,
    ),
    "Files": object_of(
        "entry files", entry=TEXT, files={"type": "object", "additionalProperties": TEXT}
    ),
    "Session": object_of(
        "id version seq finished created_at connections live parent",
        id=TEXT,
        version=_NUMBER,
        seq=_NUMBER,
        finished=_FLAG,
        created_at=TEXT,
        connections=_NUMBER,
        live=_FLAG,
        parent={"type": ["object", "null"], "properties": {"id": TEXT, "at": _NUMBER}},
        timers={"type": "array", "items": object_of("id due_at", id=_NUMBER, due_at=TEXT)},
        snapshot=ANY,
        compacted_to=_NUMBER,
    ),
    "Who": object_of(
        "standing token project scopes",
        standing=TEXT,
        token=_OPTIONAL_TEXT,
        project={"type": ["object", "null"], "properties": {"id": TEXT, "name": TEXT}},
        scopes={"type": "array", "items": TEXT},
    ),
    "Project": object_of(
        "id name created_at quotas", id=TEXT, name=TEXT, created_at=TEXT, quotas=_QUOTAS
    ),
    "ProjectPatch": object_of("quotas", quotas=_QUOTAS),
    "Usage": object_of("used quotas", used=_NUMBERS, quotas=_QUOTAS),
    "ProjectBody": object_of("name", name=_NAME),
    "TokenBody": object_of(
        "name scopes",
        name=TEXT,
        scopes={"type": "array", "minItems": 1, "items": {"enum": list(SCOPES)}},
        expires_in_s={"type": ["integer", "null"], "minimum": 1},
    ),
    "Token": object_of(
        "id name scopes created_at expires_at used_at revoked_at",
        id=_NUMBER,
        name=TEXT,
        scopes={"type": "array", "items": TEXT},
        created_at=TEXT,
        expires_at=_OPTIONAL_TEXT,
        used_at=_OPTIONAL_TEXT,
        revoked_at=_OPTIONAL_TEXT,
        token=TEXT,
    ),
    "KeyBody": object_of("name", name=TEXT, origins={"type": "array", "items": TEXT}),
    "Key": object_of(
        "id name token origins created_at expires_at used_at revoked_at",
        id=_NUMBER,
        name=TEXT,
        token=TEXT,
        origins={"type": "array", "items": TEXT},
        created_at=TEXT,
        expires_at=_OPTIONAL_TEXT,
        used_at=_OPTIONAL_TEXT,
        revoked_at=_OPTIONAL_TEXT,
    ),
    "JwtKeyBody": object_of(
        "name",
        name=TEXT,
        jwks_url=_OPTIONAL_TEXT,
        issuer=_OPTIONAL_TEXT,
        audience=_OPTIONAL_TEXT,
    ),
    "JwtKey": object_of(
        "kid name algorithms jwks_url issuer audience created_at revoked_at",
        kid=TEXT,
        name=TEXT,
        algorithms={"type": "array", "items": TEXT},
        jwks_url=_OPTIONAL_TEXT,
        issuer=_OPTIONAL_TEXT,
        audience=_OPTIONAL_TEXT,
        created_at=TEXT,
        revoked_at=_OPTIONAL_TEXT,
        secret=TEXT,
    ),
    "RevocationBody": object_of(
        "", sub=_OPTIONAL_TEXT, machine=_OPTIONAL_TEXT, session=_OPTIONAL_TEXT
    )
    | {"required": []},
    "Revocation": object_of(
        "id sub machine session at",
        id=_NUMBER,
        sub=_OPTIONAL_TEXT,
        machine=_OPTIONAL_TEXT,
        session=_OPTIONAL_TEXT,
        at=TEXT,
    ),
    "AuditLine": object_of(
        "id at who what project",
        id=_NUMBER,
        at=TEXT,
        who=TEXT,
        what=TEXT,
        project=_OPTIONAL_TEXT,
    ),
    "Node": object_of(
        "id name answers version started_at capacity draining sessions connections turns",
        id=TEXT,
        name=TEXT,
        answers={"type": "boolean"},
        version=TEXT,
        started_at=TEXT,
        capacity=_NUMBER,
        draining={"type": "boolean"},
        sessions=_NUMBER,
        connections=_NUMBER,
        turns=_NUMBER,
    ),
    "Prune": object_of("", keep={"type": "integer", "minimum": 1}),
    "Pruned": object_of("deleted", deleted={"type": "array", "items": _NUMBER}),
    "Busy": object_of(
        "machine session turns",
        machine=object_of("id name", id=TEXT, name=TEXT),
        session=TEXT,
        turns=_NUMBER,
    ),
    "Entry": object_of(
        "seq attempt kind at seed outcome changed",
        seq=_NUMBER,
        attempt=_NUMBER,
        kind={"enum": ["start", "event", "presence", "timer"]},
        at=TEXT,
        seed=_NUMBER,
        outcome={"enum": ["accepted", "rejected"]},
        changed=_FLAG,
        taken=_FLAG,
        id={"type": ["string", "null"]},
        event=ANY,
        sender=ANY,
        input=ANY,
        timer=_NUMBER,
        cause=TEXT,
        effect=_NUMBER,
        answer=ANY,
        error=object_of("code detail", code=TEXT, detail=TEXT),
    ),
    "Fork": object_of(
        "",
        at={"type": ["integer", "null"]},
        session={"type": ["string", "null"]},
        effects={"enum": ["drop", "keep"]},
    )
    | {"required": []},
    "Restart": object_of("", version={"type": ["integer", "null"], "minimum": 1})
    | {"required": [], "additionalProperties": False},
    "Replay": object_of(
        "seq inputs ms digest snapshot checkpoints verified",
        seq=_NUMBER,
        inputs=_NUMBER,
        ms={"type": "number"},
        digest=TEXT,
        snapshot=ANY,
        verified=_FLAG,
        checkpoints={
            "type": "array",
            "items": object_of("seq stored recomputed", seq=_NUMBER, stored=TEXT, recomputed=TEXT),
        },
    ),
    "Cost": object_of("cpu_us memory_bytes", cpu_us=_NUMBER, memory_bytes=_NUMBER, fuel=_NUMBER),
    "LogLine": object_of(
        "at_ms session level text",
        at_ms=_NUMBER,
        session=TEXT,
        level=TEXT,
        text=TEXT,
        cost=ref("Cost"),
    ),
    "Event": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string", "minLength": 1}},
    },
    "Snapshot": object_of(
        "type seq version snapshot", type=TEXT, seq=_NUMBER, version=_NUMBER, snapshot=ANY
    ),
    "Accepted": object_of(
        "seq outcome changed taken snapshot",
        seq=_NUMBER,
        outcome={"const": "accepted"},
        changed=_FLAG,
        taken={"type": ["boolean", "null"]},
        snapshot=ANY,
        cost=ref("Cost"),
    ),
    "Members": object_of(
        "count members",
        count=_NUMBER,
        members={
            "type": "array",
            "items": object_of(
                "id user joined_at",
                id=TEXT,
                user={"type": ["string", "null"]},
                joined_at=TEXT,
                roles={"type": "array", "items": TEXT},
                metadata=ANY,
            ),
        },
    ),
}


def wait_body(limits: Limits) -> dict[str, Any]:
    condition = {
        "oneOf": [
            {"const": "done"},
            object_of("tag", tag=TEXT) | {"additionalProperties": False},
            object_of("matches", matches={"type": ["string", "object"]})
            | {"additionalProperties": False},
        ]
    }
    return object_of(
        "condition",
        condition=condition,
        timeout_ms={"type": "integer", "minimum": 0, "maximum": limits.wait_timeout_ms},
        event=ref("Event"),
    )
