"""Responders' own SQL: who may run it on whose rows, and what is on record of it.

Guarantees: whose rows a statement can see is decided before it is looked at, and by the file it is given, never by its
text; every statement that was run is a `QueryRun` before its answer is shown, one that failed or was killed too, with
its text (as far as `SQL_RECORDED`), the digest of all of it, and what came of it. No task id gets on the trail by it:
in the record, each stands as its reference. A text that shows a credential is recorded by its digest alone.

    sql = FreeSql(service, snapshots, Sandbox(settings.responders))
    await sql.run(SqlQuestion(sql="SELECT count(*) FROM entries", tenant="acme"), asker)
"""

import asyncio
import contextlib
import functools
import hashlib
from collections.abc import Callable

from tasktrail.events.subjects import ANONYMOUS_TENANT
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services.access import secrets
from tasktrail.services.access.policy import Action
from tasktrail.services.operators import Asker
from tasktrail.services.questions import NoSuchTenant
from tasktrail.services.reading import catch_up
from tasktrail.services.sandbox import Sandbox, SqlFailed, SqlStopped, Table
from tasktrail.services.service import Service
from tasktrail.services.snapshots import Snapshots
from tasktrail.services.statements import SqlAnswer, SqlColumn, SqlQuestion

SQL_RECORDED = 8_192
"""Characters of a statement that are recorded."""
VALUE_RECORDED = 256
"""Characters of a parameter that are recorded."""

TENANTS_LOOKED_AT, TENANTS_NAMED = 200, 20
"""Of how many tenants it is asked whether they may be seen, and how many of those are named, when one is misspelt."""


class FreeSql:
    """Runs responders' statements."""

    def __init__(self, service: Service, snapshots: Snapshots, sandbox: Sandbox) -> None:
        self._service, self._snapshots, self._sandbox = service, snapshots, sandbox

    async def run(self, question: SqlQuestion, asker: Asker) -> SqlAnswer:
        """What the statement gives.

        Raises:
            NotAuthorised: this operator may not read that tenant's part of the trail, or all of it; on the trail.
            NoSuchTenant: nothing of that tenant is on the trail.
            SqlBusy: as many as may are running.
            SqlFailed, SqlStopped: it cannot be run, or reached a limit; on the trail.
            Unavailable: the trail does not answer, or there is no room for a copy of the store.
        """
        question.require_runnable()
        admission = self._service.admission
        authority = await admission.admitted(asker, Action.READ, "sql", tenant=question.tenant)
        with self._sandbox.turn():
            await catch_up(self._service)
            may_see = functools.partial(self._may_see, asker)
            await asyncio.to_thread(require_tenant, self._service.auditor.store, question.tenant, may_see)
            async with self._snapshots.open(question.tenant or None) as snapshot:
                recorded = await self._recorded(question) | {"as_of": str(snapshot.as_of)}
                try:
                    table = await self._sandbox.run(
                        snapshot.path,
                        question.sql,
                        question.parameters,
                        timeout_ms=question.timeout_ms,
                        rows_max=question.limit,
                    )
                except SqlFailed as error:
                    outcome = f"ended: {error.limit}" if isinstance(error, SqlStopped) else "failed"
                    await admission.note_query(
                        authority, "sql", recorded | {"outcome": outcome}, 0, case_id=asker.case_id
                    )
                    raise
        outcome = f"cut: {table.cut}" if table.cut else "answered"
        await admission.note_query(
            authority, "sql", recorded | {"outcome": outcome}, len(table.rows), case_id=asker.case_id
        )
        return answer_of(table, snapshot.as_of, question.tenant)

    def _may_see(self, asker: Asker, tenant: str) -> bool:
        return self._service.admission.permits(asker, Action.READ, "sql", tenant=tenant)

    async def _recorded(self, question: SqlQuestion) -> dict[str, str]:
        """What is recorded of a statement."""
        told = {f"param.{name}": str(value) for name, value in question.parameters.items()}
        cleared = await self._service.admission.cleared({"sql": question.sql, **told})
        shown = await asyncio.to_thread(_shown, cleared)
        if question.tenant:
            shown["tenant"] = question.tenant
        return shown | {"sql_sha256": hashlib.sha256(question.sql.encode()).hexdigest()}


def require_tenant(store: AuditStore, tenant: str, may_see: Callable[[str], bool] = lambda _tenant: True) -> None:
    """See that something of this tenant is on the trail; empty is every tenant. Blocks: it may read a whole column.

    Raises:
        NoSuchTenant: nothing is; the message names those there are, of which `may_see` says whether they may be.
    """
    if not tenant:
        return
    with contextlib.closing(store.cursor()) as cursor:
        if cursor.execute("SELECT 1 FROM entries WHERE tenant = ? LIMIT 1", [tenant]).fetchone():
            return
        known = cursor.execute(
            "SELECT DISTINCT tenant FROM entries WHERE tenant IS NOT NULL AND tenant <> ? ORDER BY tenant LIMIT ?",
            [ANONYMOUS_TENANT, TENANTS_LOOKED_AT],
        ).fetchall()
    seen = [str(one) for (one,) in known if may_see(str(one))]
    more = ", …" if len(seen) > TENANTS_NAMED or len(known) == TENANTS_LOOKED_AT else ""
    there = f"; there are {', '.join(f'{one[:64]!r}' for one in seen[:TENANTS_NAMED])}{more}" if seen else ""
    message = f"nothing of a tenant {tenant[:64]!r} is on the trail{there}. Nothing was run"
    raise NoSuchTenant(message)


def answer_of(table: Table, as_of: int, tenant: str) -> SqlAnswer:
    """The answer that a table is, on the rows as of this sequence."""
    columns = [SqlColumn(name=name, type=kind) for name, kind in table.columns]
    return SqlAnswer(columns=columns, rows=table.rows, cut=table.cut, as_of=as_of, tenant=tenant)


def _shown(texts: dict[str, str]) -> dict[str, str]:
    """As they are recorded. Cut last: of an id or a credential across the cut, a part would stay, unrecognised."""
    most = {"sql": SQL_RECORDED}
    return {name: _without_secrets(text)[: most.get(name, VALUE_RECORDED)] for name, text in texts.items()}


def _without_secrets(text: str) -> str:
    found = secrets.kinds(text.encode("utf-8", "replace"))
    return f"withheld, it shows: {', '.join(found)}" if found else text
