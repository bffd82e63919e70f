"""Parts of statements: their parameters and constants."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa


def parameter(name: str, kind: Any = sa.BigInteger) -> sa.BindParameter[Any]:
    """Bound as `of_<name>`, so that it is not taken for a column of an INSERT."""
    return sa.bindparam(f"of_{name}", type_=kind())


def constant(number: int) -> sa.ColumnClause[Any]:
    return sa.literal_column(str(number))
