"""The API's description, OpenAPI 3.1. Written by hand; a test holds its paths against the
routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machinehub.control.openapi_effects import EFFECT_SCHEMAS, effect_paths
from machinehub.control.schemas import (
    ANY,
    AT,
    COST,
    PAGE,
    SCHEMAS,
    TEXT,
    WHERE,
    answer,
    call,
    in_path,
    list_of,
    object_of,
    ref,
    wait_body,
)

if TYPE_CHECKING:
    from machinehub.limits import Limits


def openapi_document(base_url: str, limits: Limits) -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "machinehub",
            "version": "1",
            "description": (
                "Deploy XState machines; talk to their sessions. WebSocket frames are described "
                "in docs/protocol.md."
            ),
        },
        "servers": [{"url": base_url}],
        "security": [{"token": []}, {}],
        "paths": _hub_paths()
        | _machine_paths()
        | _version_paths()
        | _session_paths()
        | _history_paths()
        | _project_paths()
        | _key_paths()
        | _node_paths()
        | _calendar_paths()
        | effect_paths()
        | _url_paths(),
        "components": {
            "schemas": SCHEMAS | EFFECT_SCHEMAS | {"Wait": wait_body(limits)},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _hub_paths() -> dict[str, Any]:
    """The hub itself, and deploying to it."""
    return {
        "/healthz": {
            "get": call("Is the process alive?", {"200": answer("It is", ANY)}, open_to_all=True)
        },
        "/readyz": {
            "get": call(
                "Can it do its work?",
                {"200": answer("It can", ANY), "503": answer("Not now", ANY)},
                open_to_all=True,
            )
        },
        "/metrics": {
            "get": call(
                "Prometheus metrics",
                {"200": answer("The metrics", TEXT, "text/plain")},
                open_to_all=True,
            )
        },
        "/api/v1/openapi.json": {
            "get": call("This document", {"200": answer("The document", ANY)}, open_to_all=True)
        },
        "/api/v1/deployments": {
            "post": call(
                "Build an upload and go live",
                {
                    "201": answer("A new version", ref("Deployment")),
                    "200": answer("The same content again", ref("Deployment")),
                },
                body=ref("Upload"),
            )
        },
    }


def _machine_paths() -> dict[str, Any]:
    """Machines."""
    machine = [in_path("machine")]
    return {
        "/api/v1/machines": {
            "get": call(
                "List machines by name",
                {"200": answer("A page", list_of("Machine"))},
                parameters=PAGE,
            )
        },
        "/api/v1/machines/{machine}": {
            "parameters": machine,
            "get": call(
                "Read a machine, by id or name",
                {"200": answer("The machine", ref("Machine"))},
            ),
            "patch": call(
                "Rename a machine, or make it private or public",
                {"200": answer("The machine", ref("Machine"))},
                body=ref("MachinePatch"),
            ),
            "delete": call("Delete a machine and its sessions", {"204": answer("It is gone")}),
        },
    }


def _version_paths() -> dict[str, Any]:
    """What was deployed of a machine, and what it logs."""
    machine = [in_path("machine")]
    version = [in_path("machine"), in_path("number", "integer")]
    return {
        "/api/v1/machines/{machine}/versions": {
            "parameters": machine,
            "get": call(
                "List versions, newest first",
                {"200": answer("A page", list_of("Version"))},
                parameters=PAGE,
            ),
        },
        "/api/v1/machines/{machine}/versions/prune": {
            "parameters": machine,
            "post": call(
                "Delete versions that nothing uses: not the active one, the newest `keep`, or "
                "those of sessions",
                {"200": answer("What was deleted", ref("Pruned"))},
                body=ref("Prune"),
            ),
        },
        "/api/v1/machines/{machine}/versions/{number}": {
            "parameters": version,
            "get": call("Read a version", {"200": answer("The version", ref("Version"))}),
        },
        "/api/v1/machines/{machine}/versions/{number}/files": {
            "parameters": version,
            "get": call("Read a version's source", {"200": answer("The files", ref("Files"))}),
        },
        "/api/v1/machines/{machine}/versions/{number}/activate": {
            "parameters": version,
            "post": call(
                "Make it the version that new sessions get",
                {"200": answer("The machine", ref("Machine"))},
            ),
        },
        "/api/v1/machines/{machine}/logs": {
            "parameters": machine,
            "get": call(
                "The last log lines; text/event-stream follows",
                {"200": answer("The lines", list_of("LogLine"))},
            ),
        },
    }


def _session_paths() -> dict[str, Any]:
    """Looking after sessions."""
    machine = [in_path("machine")]
    session = [in_path("machine"), in_path("session")]
    return {
        "/api/v1/busiest": {
            "get": call(
                "The sessions of the hub with the most turns in the last minute",
                {"200": answer("The busiest first", list_of("Busy"))},
                parameters=PAGE[:1],
            ),
        },
        "/api/v1/machines/{machine}/sessions": {
            "parameters": machine,
            "get": call(
                "List sessions by id",
                {"200": answer("A page", list_of("Session"))},
                parameters=PAGE,
            ),
        },
        "/api/v1/machines/{machine}/sessions/{session}": {
            "parameters": session,
            "get": call(
                "Read a session, as it is or as it was at an input",
                {"200": answer("The session", ref("Session"))},
                parameters=AT,
            ),
            "delete": call(
                "Delete a session and all that is kept of it", {"204": answer("It is gone")}
            ),
        },
    }


def _history_paths() -> dict[str, Any]:
    """What a session was, and what it may become."""
    session = [in_path("machine"), in_path("session")]
    return {
        "/api/v1/machines/{machine}/sessions/{session}/journal": {
            "parameters": session,
            "get": call(
                "List the session's inputs, oldest first",
                {"200": answer("A page", list_of("Entry"))},
                parameters=[*PAGE, *WHERE],
            ),
        },
        "/api/v1/machines/{machine}/sessions/{session}/fork": {
            "parameters": session,
            "post": call(
                "A new session that goes on from an input of this one",
                {"201": answer("The new session", ref("Session"))},
                body=ref("Fork"),
                body_required=False,
            ),
        },
        "/api/v1/machines/{machine}/sessions/{session}/replay": {
            "parameters": session,
            "post": call(
                "Recompute from the journal, comparing with the checkpoints",
                {"200": answer("What came of it", ref("Replay"))},
                parameters=AT,
            ),
        },
        "/api/v1/machines/{machine}/sessions/{session}/restart": {
            "parameters": session,
            "post": call(
                "Delete the session, and start it anew with the same input",
                {"200": answer("The new session, with its snapshot", ref("Session"))},
                body=ref("Restart"),
                body_required=False,
            ),
        },
    }


def _project_paths() -> dict[str, Any]:
    """What machines and tokens belong to. Every call about machines takes `?project=`."""
    project = [in_path("project")]
    return {
        "/api/v1/whoami": {
            "get": call(
                "Whom the hub takes the request to be of, and what that may do",
                {"200": answer("Who it is", ref("Who"))},
                open_to_all=True,
            )
        },
        "/api/v1/projects": {
            "get": call(
                "List projects: all, or the token's own",
                {"200": answer("A page", list_of("Project"))},
                parameters=PAGE,
            ),
            "post": call(
                "Create a project",
                {"201": answer("The project", ref("Project"))},
                body=ref("ProjectBody"),
            ),
        },
        "/api/v1/projects/{project}": {
            "parameters": project,
            "patch": call(
                "Set a project's quotas: those that are named",
                {"200": answer("The project", ref("Project"))},
                body=ref("ProjectPatch"),
            ),
            "delete": call(
                "Delete a project without machines, and revoke its tokens",
                {"204": answer("It is gone")},
            ),
        },
        "/api/v1/projects/{project}/usage": {
            "parameters": project,
            "get": call(
                "What a project uses, and its quotas", {"200": answer("Both", ref("Usage"))}
            ),
        },
        "/api/v1/projects/{project}/tokens": {
            "parameters": project,
            "get": call("List a project's tokens", {"200": answer("A page", list_of("Token"))}),
            "post": call(
                "Create a token, whose text is in this answer alone",
                {"201": answer("The token", ref("Token"))},
                body=ref("TokenBody"),
            ),
        },
        "/api/v1/projects/{project}/tokens/{token}": {
            "parameters": [*project, in_path("token", "integer")],
            "delete": call(
                "Revoke a token: what it opened is closed within seconds",
                {"204": answer("It is revoked")},
            ),
        },
    }


def _key_paths() -> dict[str, Any]:
    """What an app's own users show, and who did what."""
    project = [in_path("project")]
    return {
        "/api/v1/projects/{project}/keys": {
            "parameters": project,
            "get": call("List publishable keys", {"200": answer("A page", list_of("Key"))}),
            "post": call(
                "Create a publishable key, for browsers",
                {"201": answer("The key", ref("Key"))},
                body=ref("KeyBody"),
            ),
        },
        "/api/v1/projects/{project}/keys/{key}": {
            "parameters": [*project, in_path("key", "integer")],
            "delete": call("Revoke a publishable key", {"204": answer("It is revoked")}),
        },
        "/api/v1/projects/{project}/jwt-keys": {
            "parameters": project,
            "get": call(
                "List the keys of connect tokens", {"200": answer("A page", list_of("JwtKey"))}
            ),
            "post": call(
                "Create a secret for HS256, which is in this answer alone; or name an issuer",
                {"201": answer("The key", ref("JwtKey"))},
                body=ref("JwtKeyBody"),
            ),
        },
        "/api/v1/projects/{project}/jwt-keys/{kid}": {
            "parameters": [*project, in_path("kid")],
            "delete": call("Revoke a key of connect tokens", {"204": answer("It is revoked")}),
        },
        "/api/v1/projects/{project}/revocations": {
            "parameters": project,
            "get": call("List revocations", {"200": answer("A page", list_of("Revocation"))}),
            "post": call(
                "Connect tokens that were issued until now are not valid for a user, or a session",
                {"201": answer("The revocation", ref("Revocation"))},
                body=ref("RevocationBody"),
            ),
        },
        "/api/v1/projects/{project}/revocations/{revocation}": {
            "parameters": [*project, in_path("revocation", "integer")],
            "delete": call("Take a revocation back", {"204": answer("It is gone")}),
        },
        "/api/v1/audit": {
            "get": call(
                "Who did what, the newest first",
                {"200": answer("A page", list_of("AuditLine"))},
                parameters=PAGE,
            )
        },
    }


def _node_paths() -> dict[str, Any]:
    """Hubs that share a database."""
    return {
        "/api/v1/nodes": {
            "get": call(
                "The hubs that share the database; none for a hub of its own",
                {"200": answer("All of them", list_of("Node"))},
            )
        },
        "/api/v1/nodes/{node}/drain": {
            "parameters": [in_path("node")],
            "post": call("End a node: others have its sessions", {"202": answer("It ends soon")}),
        },
    }


def _calendar_paths() -> dict[str, Any]:
    return {
        "/api/v1/machines/{machine}/cron": {
            "parameters": [in_path("machine")],
            "get": call(
                "The machine's calendar, with the last 100 times of each entry",
                {"200": answer("All of it", list_of("Cron"))},
            ),
        },
    }


def _url_paths() -> dict[str, Any]:
    """What everybody may do: machines and sessions by their own URLs."""
    machine = [in_path("machine")]
    session = [in_path("machine"), in_path("session")]
    return {
        "/{machine}": {
            "parameters": machine,
            "get": call(
                "The machine's page or definition",
                {"200": answer("By Accept", ANY)},
                open_to_all=True,
            ),
        },
        "/{machine}/{session}": {
            "parameters": session,
            "get": call(
                "The snapshot, a page, or a stream; WebSocket by upgrade",
                {"200": answer("By Accept", ref("Snapshot"))},
                parameters=AT,
                open_to_all=True,
            ),
            "post": call(
                "Send an event",
                {"200": answer("It was accepted", ref("Accepted"))},
                body=ref("Event"),
                parameters=COST,
                open_to_all=True,
            ),
            "put": call(
                "Create the session with an input",
                {"201": answer("It was created", ref("Snapshot"))},
                body=object_of("", input=ANY) | {"required": []},
                open_to_all=True,
            ),
        },
        "/{machine}/{session}/presence": {
            "parameters": session,
            "get": call(
                "Who is there",
                {"200": answer("The members", ref("Members"))},
                open_to_all=True,
            ),
            "put": call(
                "What a member that listens over SSE says of itself",
                {"200": answer("The members", ref("Members"))},
                body=object_of("metadata", metadata=ANY),
                open_to_all=True,
            ),
        },
        "/{machine}/{session}/wait": {
            "parameters": session,
            "post": call(
                "Wait for a condition",
                {"200": answer("It holds", ref("Snapshot"))},
                body=ref("Wait"),
                open_to_all=True,
            ),
        },
    }
