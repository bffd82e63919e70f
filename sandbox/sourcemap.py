"""Source maps: from a place in a bundle back to the user's own file (version 3, ECMA-426)."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_BASE64: Final = {char: value for value, char in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


_PLACE: Final = re.compile(r"[0-9]{1,7}:[0-9]{1,7}")
MAPPINGS_CHARS_MAX: Final = 400_000
"""A longer map (of some 100 KiB of source) takes a third of a second to walk, which errors of strangers are not worth."""


class SourceMap(msgspec.Struct, frozen=True):
    """The two fields of a map that matter here, decoded only when somebody asks for a place."""

    sources: list[str]
    mappings: str

    def find(self, at: str) -> tuple[str, int, int] | None:
        """The source (file, line, column) of the last mapping at or before `at`, "line:column"; all counted from 1.

        `at` comes from the guest: anything else than such a place, and a map that is no map, has no answer.
        """
        if not _PLACE.fullmatch(at) or len(self.mappings) > MAPPINGS_CHARS_MAX:
            return None
        line, column = (int(part) for part in at.split(":"))
        try:
            return self._walk(line, column)
        except (KeyError, IndexError):
            return None

    def _walk(self, line: int, column: int) -> tuple[str, int, int] | None:
        source = source_line = source_column = 0
        best: tuple[str, int, int] | None = None
        for number, segments in enumerate(self.mappings.split(";"), 1):
            if number > line:
                break
            generated = 0
            for segment in filter(None, segments.split(",")):
                fields = _vlq(segment)
                generated += fields[0]
                if len(fields) < 4:
                    continue
                source, source_line, source_column = source + fields[1], source_line + fields[2], source_column + fields[3]
                if number == line and generated <= column - 1:
                    best = (self.sources[source], source_line + 1, source_column + 1)
        return best


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
