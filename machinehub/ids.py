"""Names and numbers that must not be mistaken for one another.

Those that workers know too (slots, tickets, timers) are in `sandbox/protocol/ids.py`.
"""

from __future__ import annotations

from typing import NewType

MachineId = NewType("MachineId", str)
"""6 or more base62 characters: the first part of a machine's URLs, and the secret that lets people
in.
"""
ProjectId = NewType("ProjectId", str)
"""`default`, or base62 characters: what machines and tokens belong to."""
SessionId = NewType("SessionId", str)
"""1 to 128 characters of any text, chosen by whoever opened the session first."""
SessionKey = NewType("SessionKey", int)
"""63 bits that name a session in the database. Never used again, when a session of the same id is
created after this one was deleted.
"""
Seq = NewType("Seq", int)
"""How many inputs of a session have been applied, an input's own included: the first is 1."""
EventId = NewType("EventId", str)
"""What a client calls one event of a session, so that a second copy of it counts for nothing."""
MemberId = NewType("MemberId", str)
"""Who is behind a session's connections: a user, or whoever holds one client key."""
NodeId = NewType("NodeId", str)
"""One incarnation of a hub that shares its database with others: new at every start."""
Digest = NewType("Digest", str)
"""The name of a content: 32 hexadecimal digits of its SHA-256."""
