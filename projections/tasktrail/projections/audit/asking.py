"""Named queries asked of an open audit store, page by page.

Guarantees: an answer is read in one snapshot and never changes anything; the rows of one stream sequence are on one
page; the tenant's scope is a bound value of every query, and a task of another tenant is as one that is not there.

    ask(cursor, query, parameters, tenant="acme", after=0, most=100)
"""

from collections.abc import Mapping
from typing import Any

import duckdb

from tasktrail.events.subjects import tenant_token
from tasktrail.projections.audit.named import Answer, Column, NamedQuery, Value, used

ROWS_MAX = 100_000
"""Rows of one page at most, unless one sequence alone has more: it is never cut."""
PAGE = 1_000
"""Rows of a page when nobody says how many."""
_EVERYTHING = (0, 2**63 - 1)
_NOTHING = (0, 0)


def ask(  # noqa: PLR0913 - a query and its page
    cursor: duckdb.DuckDBPyConnection,
    query: NamedQuery,
    parameters: Mapping[str, Value],
    *,
    tenant: str | None,
    after: int,
    most: int,
    as_of: int,
) -> Answer:
    """One page: the rows after the sequence `after`, at most `most`, and more only when one sequence alone has more.

    `as_of`: nothing recorded after this sequence is looked at, as far as the query goes by entries.
    """
    most = max(1, min(most, ROWS_MAX))
    first, last = _span(cursor, parameters.get("task"), tenant)
    bound: dict[str, Any] = dict(parameters) | {
        "tenant": tenant,
        "tenant_token": None if tenant is None else tenant_token(tenant),
        "after": after,
        "as_of": as_of,
        "first": first,
        "last": last,
    }
    limit = most
    while True:
        bound["most"] = limit + 1
        for statement in query.statements:
            if statement is not query.statements[0]:
                bound |= _page(cursor)
            cursor.execute(statement, {name: bound[name] for name in used(statement)})
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        if len(rows) <= limit:
            return _answer(cursor, rows, more=False, after=after, as_of=as_of)
        whole = [row for row in rows if row[0] != rows[-1][0]]
        if whole:
            return _answer(cursor, whole, more=True, after=after, as_of=as_of)
        limit *= 2


def _answer(
    cursor: duckdb.DuckDBPyConnection, rows: list[tuple[Any, ...]], *, more: bool, after: int, as_of: int
) -> Answer:
    columns = tuple(Column(name=one[0], type=str(one[1])) for one in cursor.description)
    return Answer(columns=columns, rows=rows, more=more, after=rows[-1][0] if rows else after, as_of=as_of)


def _page(cursor: duckdb.DuckDBPyConnection) -> dict[str, list[Any] | int]:
    """What the first statement has found, as the second takes it."""
    names = [str(one[0]) for one in cursor.description]
    found = dict(zip(names, zip(*cursor.fetchall(), strict=True), strict=False))
    sequences = list(found.get("stream_seq", ()))
    return {
        "page": sequences,
        "page_first": min(sequences, default=0),
        "page_last": max(found.get("last_seq", sequences), default=0),
        "page_rank": list(found.get("rank", ())),
    }


def _span(cursor: duckdb.DuckDBPyConnection, ref: Value, tenant: str | None) -> tuple[int, int]:
    """Between which sequences a task lies: a scan that knows them reads few row groups."""
    if ref is None:
        return _EVERYTHING
    row = cursor.execute("SELECT first_seq, last_seq, tenant FROM tasks WHERE task_ref = ?", [ref]).fetchone()
    return _NOTHING if row is None or tenant not in {None, row[2]} else (row[0], row[1])
