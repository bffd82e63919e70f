"""The API's description, OpenAPI 3.1. Written by hand; a test holds its paths against the routes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machinehub.control.uploads import NAME
from machinehub.limits import MachineLimits

if TYPE_CHECKING:
    from machinehub.limits import Limits

JSON = "application/json"


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(
    description: str, schema: dict[str, Any] | None = None, media_type: str = JSON
) -> dict[str, Any]:
    return (
        {"description": description, "content": {media_type: {"schema": schema}}}
        if schema is not None
        else {"description": description}
    )


_PROBLEM = _answer("What went wrong", _ref("Problem"), "application/problem+json")


def _call(
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


def _in_path(name: str, kind: str = "string") -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}}


_PAGE = [
    {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 500, "default": 100},
    },
    {"name": "cursor", "in": "query", "schema": {"type": "string"}},
]

_WHERE = [
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
_COST = [{"name": "cost", "in": "query", "schema": {}, "description": "1: say what the turn cost"}]
_AT = [
    {
        "name": "at",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1},
        "description": "the seq of the input after which to look",
    }
]


def _list(of: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["data", "next"],
        "properties": {
            "data": {"type": "array", "items": _ref(of)},
            "next": {"type": ["string", "null"]},
        },
    }


def _object(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


_TEXT = {"type": "string"}
_NAME = {"type": "string", "pattern": f"^{NAME.pattern}$"}
_NUMBER = {"type": "integer"}
_FLAG = {"type": "boolean"}
_ANY: dict[str, Any] = {}

SCHEMAS: dict[str, Any] = {
    "Problem": _object(
        "type title status detail code",
        type=_TEXT,
        title=_TEXT,
        status=_NUMBER,
        detail=_TEXT,
        code=_TEXT,
        errors={"type": "array", "items": _ref("BuildMessage")},
    ),
    "BuildMessage": _object(
        "message",
        message=_TEXT,
        file={"type": ["string", "null"]},
        line={"type": ["integer", "null"]},
        column={"type": ["integer", "null"]},
    ),
    "Upload": _object(
        "name entry files",
        name=_NAME,
        entry=_TEXT,
        files={"type": "object", "additionalProperties": _TEXT},
        message=_TEXT,
        activate=_FLAG,
        machine={"type": "object", "properties": {"on_error": {"enum": ["reject", "stop"]}}},
        limits={
            "type": "object",
            "properties": {
                name: {"type": "integer", "minimum": 1} for name in MachineLimits.__struct_fields__
            },
            "additionalProperties": False,
        },
    ),
    "Deployment": _object(
        "machine version created timings_ms warnings",
        machine=_object("id name url", id=_TEXT, name=_TEXT, url=_TEXT),
        version=_object("number digest engine", number=_NUMBER, digest=_TEXT, engine=_TEXT),
        created=_FLAG,
        timings_ms=_object(
            "bundle freeze total",
            bundle={"type": "number"},
            freeze={"type": "number"},
            total={"type": "number"},
        ),
        warnings={"type": "array", "items": _TEXT},
    ),
    "Machine": _object(
        "id name url created_at active_version",
        id=_TEXT,
        name=_TEXT,
        url=_TEXT,
        created_at=_TEXT,
        active_version={"type": ["integer", "null"]},
        version=_ref("Version"),
    ),
    "MachinePatch": _object("name", name=_NAME),
    "Version": _object(
        "number digest engine entry message created_at",
        number=_NUMBER,
        digest=_TEXT,
        engine=_TEXT,
        entry=_TEXT,
        message=_TEXT,
        created_at=_TEXT,
        active=_FLAG,
        definition=_ANY,
    ),
    "Files": _object(
        "entry files", entry=_TEXT, files={"type": "object", "additionalProperties": _TEXT}
    ),
    "Session": _object(
        "id version seq finished created_at connections live parent",
        id=_TEXT,
        version=_NUMBER,
        seq=_NUMBER,
        finished=_FLAG,
        created_at=_TEXT,
        connections=_NUMBER,
        live=_FLAG,
        parent={"type": ["object", "null"], "properties": {"id": _TEXT, "at": _NUMBER}},
        snapshot=_ANY,
    ),
    "Entry": _object(
        "seq attempt kind at seed outcome changed",
        seq=_NUMBER,
        attempt=_NUMBER,
        kind={"enum": ["start", "event", "presence", "timer"]},
        at=_TEXT,
        seed=_NUMBER,
        outcome={"enum": ["accepted", "rejected"]},
        changed=_FLAG,
        id={"type": ["string", "null"]},
        event=_ANY,
        sender=_ANY,
        input=_ANY,
        timer=_NUMBER,
        error=_object("code detail", code=_TEXT, detail=_TEXT),
    ),
    "Fork": _object("", at={"type": ["integer", "null"]}, session={"type": ["string", "null"]})
    | {"required": []},
    "Replay": _object(
        "seq inputs ms digest snapshot checkpoints verified",
        seq=_NUMBER,
        inputs=_NUMBER,
        ms={"type": "number"},
        digest=_TEXT,
        snapshot=_ANY,
        verified=_FLAG,
        checkpoints={
            "type": "array",
            "items": _object("seq stored recomputed", seq=_NUMBER, stored=_TEXT, recomputed=_TEXT),
        },
    ),
    "Cost": _object("cpu_us memory_bytes", cpu_us=_NUMBER, memory_bytes=_NUMBER, fuel=_NUMBER),
    "LogLine": _object(
        "at_ms session level text",
        at_ms=_NUMBER,
        session=_TEXT,
        level=_TEXT,
        text=_TEXT,
        cost=_ref("Cost"),
    ),
    "Event": {
        "type": "object",
        "required": ["type"],
        "properties": {"type": {"type": "string", "minLength": 1}},
    },
    "Snapshot": _object(
        "type seq version snapshot", type=_TEXT, seq=_NUMBER, version=_NUMBER, snapshot=_ANY
    ),
    "Accepted": _object(
        "seq outcome changed snapshot",
        seq=_NUMBER,
        outcome={"const": "accepted"},
        changed=_FLAG,
        snapshot=_ANY,
        cost=_ref("Cost"),
    ),
    "Members": _object(
        "count members",
        count=_NUMBER,
        members={
            "type": "array",
            "items": _object(
                "id user joined_at",
                id=_TEXT,
                user={"type": ["string", "null"]},
                joined_at=_TEXT,
                metadata=_ANY,
            ),
        },
    ),
}


def _wait(limits: Limits) -> dict[str, Any]:
    condition = {
        "oneOf": [
            {"const": "done"},
            _object("tag", tag=_TEXT) | {"additionalProperties": False},
            _object("matches", matches={"type": ["string", "object"]})
            | {"additionalProperties": False},
        ]
    }
    return _object(
        "condition",
        condition=condition,
        timeout_ms={"type": "integer", "minimum": 0, "maximum": limits.wait_timeout_ms},
        event=_ref("Event"),
    )


def openapi_document(base_url: str, limits: Limits) -> dict[str, Any]:
    machine, version, session = (
        [_in_path("machine")],
        [_in_path("machine"), _in_path("number", "integer")],
        [_in_path("machine"), _in_path("session")],
    )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "machinehub",
            "version": "1",
            "description": "Deploy XState machines; talk to their sessions. WebSocket frames are described in docs/protocol.md.",
        },
        "servers": [{"url": base_url}],
        "security": [{"token": []}, {}],
        "paths": {
            "/healthz": {
                "get": _call(
                    "Is the process alive?", {"200": _answer("It is", _ANY)}, open_to_all=True
                )
            },
            "/readyz": {
                "get": _call(
                    "Can it do its work?",
                    {"200": _answer("It can", _ANY), "503": _answer("Not now", _ANY)},
                    open_to_all=True,
                )
            },
            "/metrics": {
                "get": _call(
                    "Prometheus metrics",
                    {"200": _answer("The metrics", _TEXT, "text/plain")},
                    open_to_all=True,
                )
            },
            "/api/v1/openapi.json": {
                "get": _call(
                    "This document", {"200": _answer("The document", _ANY)}, open_to_all=True
                )
            },
            "/api/v1/deployments": {
                "post": _call(
                    "Build an upload and go live",
                    {
                        "201": _answer("A new version", _ref("Deployment")),
                        "200": _answer("The same content again", _ref("Deployment")),
                    },
                    body=_ref("Upload"),
                )
            },
            "/api/v1/machines": {
                "get": _call(
                    "List machines by name",
                    {"200": _answer("A page", _list("Machine"))},
                    parameters=_PAGE,
                )
            },
            "/api/v1/machines/{machine}": {
                "parameters": machine,
                "get": _call(
                    "Read a machine, by id or name",
                    {"200": _answer("The machine", _ref("Machine"))},
                ),
                "patch": _call(
                    "Rename a machine",
                    {"200": _answer("The machine", _ref("Machine"))},
                    body=_ref("MachinePatch"),
                ),
                "delete": _call(
                    "Delete a machine and its sessions", {"204": _answer("It is gone")}
                ),
            },
            "/api/v1/machines/{machine}/versions": {
                "parameters": machine,
                "get": _call(
                    "List versions, newest first",
                    {"200": _answer("A page", _list("Version"))},
                    parameters=_PAGE,
                ),
            },
            "/api/v1/machines/{machine}/versions/{number}": {
                "parameters": version,
                "get": _call("Read a version", {"200": _answer("The version", _ref("Version"))}),
            },
            "/api/v1/machines/{machine}/versions/{number}/files": {
                "parameters": version,
                "get": _call(
                    "Read a version's source", {"200": _answer("The files", _ref("Files"))}
                ),
            },
            "/api/v1/machines/{machine}/versions/{number}/activate": {
                "parameters": version,
                "post": _call(
                    "Make it the version that new sessions get",
                    {"200": _answer("The machine", _ref("Machine"))},
                ),
            },
            "/api/v1/machines/{machine}/sessions": {
                "parameters": machine,
                "get": _call(
                    "List sessions by id",
                    {"200": _answer("A page", _list("Session"))},
                    parameters=_PAGE,
                ),
            },
            "/api/v1/machines/{machine}/sessions/{session}": {
                "parameters": session,
                "get": _call(
                    "Read a session, as it is or as it was at an input",
                    {"200": _answer("The session", _ref("Session"))},
                    parameters=_AT,
                ),
                "delete": _call(
                    "Delete a session and all that is kept of it", {"204": _answer("It is gone")}
                ),
            },
            "/api/v1/machines/{machine}/sessions/{session}/journal": {
                "parameters": session,
                "get": _call(
                    "List the session's inputs, oldest first",
                    {"200": _answer("A page", _list("Entry"))},
                    parameters=[*_PAGE, *_WHERE],
                ),
            },
            "/api/v1/machines/{machine}/sessions/{session}/fork": {
                "parameters": session,
                "post": _call(
                    "A new session that goes on from an input of this one",
                    {"201": _answer("The new session", _ref("Session"))},
                    body=_ref("Fork"),
                    body_required=False,
                ),
            },
            "/api/v1/machines/{machine}/sessions/{session}/replay": {
                "parameters": session,
                "post": _call(
                    "Recompute from the journal, comparing with the checkpoints",
                    {"200": _answer("What came of it", _ref("Replay"))},
                    parameters=_AT,
                ),
            },
            "/api/v1/machines/{machine}/logs": {
                "parameters": machine,
                "get": _call(
                    "The last log lines; text/event-stream follows",
                    {"200": _answer("The lines", _list("LogLine"))},
                ),
            },
            "/{machine}": {
                "parameters": machine,
                "get": _call(
                    "The machine's page or definition",
                    {"200": _answer("By Accept", _ANY)},
                    open_to_all=True,
                ),
            },
            "/{machine}/{session}": {
                "parameters": session,
                "get": _call(
                    "The snapshot, a page, or a stream; WebSocket by upgrade",
                    {"200": _answer("By Accept", _ref("Snapshot"))},
                    parameters=_AT,
                    open_to_all=True,
                ),
                "post": _call(
                    "Send an event",
                    {"200": _answer("It was accepted", _ref("Accepted"))},
                    body=_ref("Event"),
                    parameters=_COST,
                    open_to_all=True,
                ),
                "put": _call(
                    "Create the session with an input",
                    {"201": _answer("It was created", _ref("Snapshot"))},
                    body=_object("", input=_ANY) | {"required": []},
                    open_to_all=True,
                ),
            },
            "/{machine}/{session}/presence": {
                "parameters": session,
                "get": _call(
                    "Who is there",
                    {"200": _answer("The members", _ref("Members"))},
                    open_to_all=True,
                ),
                "put": _call(
                    "What a member that listens over SSE says of itself",
                    {"200": _answer("The members", _ref("Members"))},
                    body=_object("metadata", metadata=_ANY),
                    open_to_all=True,
                ),
            },
            "/{machine}/{session}/wait": {
                "parameters": session,
                "post": _call(
                    "Wait for a condition",
                    {"200": _answer("It holds", _ref("Snapshot"))},
                    body=_ref("Wait"),
                    open_to_all=True,
                ),
            },
        },
        "components": {
            "schemas": SCHEMAS | {"Wait": _wait(limits)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
