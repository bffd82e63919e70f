"""Source maps: from a place in a bundle back to the user's own file (version 3, ECMA-426)."""

from __future__ import annotations

import bisect
import functools
import re
from typing import Final

import msgspec

_BASE64: Final = {
    char: value
    for value, char in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
}


_PLACE: Final = re.compile(r"[0-9]{1,7}:[0-9]{1,7}")
MAPPINGS_CHARS_MAX: Final = 400_000
"""A longer map (of some 100 KiB of source) takes a third of a second to walk, which errors of
strangers are not worth.
"""


class SourceMap(msgspec.Struct, frozen=True):
    """The two fields of a map that matter here, decoded only when somebody asks for a place."""

    sources: list[str]
    mappings: str

    def find(self, at: str) -> tuple[str, int, int] | None:
        """The source (file, line, column) of the last mapping at or before `at`, "line:column"; all
        counted from 1.

        `at` comes from the guest: anything else than such a place, and a map that is no map, has no
        answer.
        """
        if not _PLACE.fullmatch(at) or len(self.mappings) > MAPPINGS_CHARS_MAX:
            return None
        line, column = (int(part) for part in at.split(":"))
        try:
            places = _places(self.mappings)
            before = bisect.bisect_right(places, (line, column - 1, _LAST)) - 1
            if before < 0 or places[before][0] != line:
                return None
            source, source_line, source_column = places[before][2]
            return self.sources[source], source_line + 1, source_column + 1
        except (KeyError, IndexError):
            return None


_Place = tuple[int, int, tuple[int, int, int]]
_LAST: Final = (2**31, 0, 0)


@functools.lru_cache(maxsize=8)
def _places(mappings: str) -> list[_Place]:
    """All mappings in order: line and column in the bundle, and where that is in the sources.

    Walked once for many errors: a machine that throws in every turn would have everybody else pay
    for the walk.
    """
    found: list[_Place] = []
    source = source_line = source_column = 0
    for number, segments in enumerate(mappings.split(";"), 1):
        generated = 0
        for segment in filter(None, segments.split(",")):
            fields = _vlq(segment)
            generated += fields[0]
            if len(fields) < 4:
                continue
            source, source_line, source_column = (
                source + fields[1],
                source_line + fields[2],
                source_column + fields[3],
            )
            found.append((number, generated, (source, source_line, source_column)))
    return sorted(found)


def _vlq(segment: str) -> list[int]:
    fields: list[int] = []
    value = shift = 0
    for char in segment:
        digit = _BASE64[char]
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            fields.append(-(value >> 1) if value & 1 else value >> 1)
            value = shift = 0
    return fields
