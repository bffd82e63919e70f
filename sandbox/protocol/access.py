"""The table `[[access]]` of a version: who may send which events, in which states; and how events
are described, there and in connect tokens.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

RULES_MAX: Final = 200
_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
_Texts = Annotated[list[_Text], msgspec.Meta(min_length=1, max_length=100)]


class Rule(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """One line of the table. What it leaves out it does not ask for."""

    events: _Texts
    """Types of events, as XState writes them: `approve`, `edit.*` or `*`. Of all rules those with
    the most exact description of an event count, and one of them must hold; an event that none
    describes is anybody's.
    """
    states: _Texts | None = None
    """The machine is in one of these, by their path from the root: `review`, `review.*`, `*`."""
    roles: Annotated[list[_Text], msgspec.Meta(max_length=100)] | None = None
    """The member has one of these; of an empty list nobody has any."""
    sub: _Text | None = None
    """A path into the snapshot, `context.owner`: the member's user stands there, or is in the list
    or among the keys of the object that stands there.
    """


Table = Annotated[list[Rule], msgspec.Meta(max_length=RULES_MAX)]


def exactness(pattern: str, type_: str) -> int:
    """How exactly a pattern, as XState writes them, describes the type of an event; 0 for not at
    all. `edit.*` is `edit` too.
    """
    if pattern == type_:
        return len(type_) + 2
    if pattern == "*":
        return 1
    stem = pattern.removesuffix(".*")
    if stem != pattern and (type_ == stem or type_.startswith(stem + ".")):
        return len(stem) + 1
    return 0
