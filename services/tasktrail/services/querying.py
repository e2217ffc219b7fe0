"""Named queries over a running service: every answer is on the trail before it is given.

Guarantees: what is recorded is the query, its parameters, how many rows, and the case; an answer holds everything the
trail held when it was asked for, or says as of which sequence it is; a subject is looked for as it is recorded. Without
a tenant the operator must be permitted the whole trail.

    querying = Querying(service)
    await querying.ask("by_principal", Question(parameters={"sub": "ana", "tenant": "acme"}), asker)
"""

import asyncio
import contextlib
import threading
from collections.abc import Generator, Mapping

import duckdb

from tasktrail.events.errors import InvalidRequest, Unavailable
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.audit import asking
from tasktrail.projections.audit.errors import AuditStoreError
from tasktrail.projections.audit.named import Answer, Kind, NamedQuery
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services.access.policy import Action
from tasktrail.services.access.pseudonyms import OURS
from tasktrail.services.operators import Asker
from tasktrail.services.questions import (
    TENANT,
    AnswerShown,
    Prepared,
    QueryStopped,
    Question,
    is_known,
    named,
    prepare,
    reference,
    refuse_token,
    shown,
)
from tasktrail.services.reading import catch_up
from tasktrail.services.service import Service

AT_ONCE = 3
"""Pages that are read at the same time: each takes a thread, of which the service has few."""
TURN_WITHIN_S, WITHIN_S = 8.0, 20.0
"""How long one waits for its turn, and may take then: less than the command line waits, `sources.ANSWER_WITHIN_S`."""
_AGAIN_S = 0.1
OF_OPERATORS = frozenset({"responders"})
"""Queries whose subjects are operators."""


class Querying:
    """Answers questions over a running service."""

    def __init__(self, service: Service, within_s: float = WITHIN_S) -> None:
        self._service, self._within_s = service, within_s
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def ask(self, name: str, question: Question, asker: Asker) -> AnswerShown:
        """A page of an answer, which is recorded before it is given.

        Raises:
            NoSuchQuery, WrongParameters, InvalidRequest: the question is none.
            NotAuthorised: this operator may not ask that; on the trail.
            QueryStopped: it took longer than it may; on the trail.
            Unavailable: it cannot be recorded now, or as many as may are running.
        """
        query, service = named(name), self._service
        for parameter, text in question.parameters.items():
            refuse_token(parameter, text)
        authority = await service.admission.admitted(
            asker, Action.READ, f"query/{name}", tenant=question.parameters.get(TENANT, "")
        )
        await catch_up(service)
        await asyncio.to_thread(self._refuse_ids, query, question.parameters)
        prepared = await asyncio.to_thread(prepare, name, self._as_recorded(name, question.parameters), self._reference)
        told = prepared.given | ({"after": str(question.after)} if question.after else {})
        try:
            answer = await self._answered(prepared, question)
        except QueryStopped:
            stopped = told | {"outcome": "ended: time"}
            await service.admission.note_query(authority, name, stopped, 0, case_id=asker.case_id)
            raise
        await service.admission.note_query(authority, name, told, len(answer.rows), case_id=asker.case_id)
        return shown(prepared, answer)

    async def _answered(self, prepared: Prepared, question: Question) -> Answer:
        try:
            async with asyncio.timeout(TURN_WITHIN_S):
                await self._turns.acquire()
        except TimeoutError:
            message = f"{AT_ONCE} queries have been running for a while, and no more do at once; try again"
            raise Unavailable(message) from None
        try:
            return await asyncio.to_thread(answered, self._service.auditor.store, prepared, question, self._within_s)
        finally:
            self._turns.release()

    def _reference(self, task: str) -> str:
        """The reference of a task from its reference or id. Blocks."""
        return reference(self._service.auditor.store, self._service.keyring.ref, task)

    def _refuse_ids(self, query: NamedQuery, given: Mapping[str, str]) -> None:
        """Refuse a task's id where none belongs, which would be recorded as it is. Blocks.

        Raises:
            InvalidRequest: one is given; the message does not repeat it.
        """
        tasks = {one.name for one in query.parameters if one.kind is Kind.REF}
        for parameter, text in given.items():
            looks_alike = parameter not in tasks and is_task_ref(text)
            if looks_alike and is_known(self._service.auditor.store, self._service.keyring.ref(text)):
                message = f"{parameter[:64]!r} is given the id of a task, which opens it, and parameters are recorded"
                raise InvalidRequest(message)

    def _as_recorded(self, name: str, given: Mapping[str, str]) -> dict[str, str]:
        """Parameters with a subject as the trail knows it: where it keeps pseudonyms, no name but an operator's is."""
        iss = OURS if name in OF_OPERATORS else given.get("iss")
        sub = self._service.operating.recorded_subject(given.get(TENANT), iss, given.get("sub"))
        return dict(given) | ({"sub": sub} if sub else {})


def answered(store: AuditStore, prepared: Prepared, question: Question, within_s: float) -> Answer:
    """A page of an answer, within so many seconds. Blocks, meanwhile, nobody but who asks.

    Raises:
        QueryStopped: it would have taken longer.
        AuditStoreError: the store cannot be read.
    """
    as_of = store.last_seq  # before the snapshot, which has at least that
    try:
        with contextlib.closing(store.cursor()) as cursor, _at_most(cursor, within_s):
            cursor.begin()
            return asking.ask(
                cursor,
                prepared.query,
                prepared.values,
                tenant=prepared.tenant,
                after=question.after,
                most=question.limit,
                as_of=as_of,
            )
    except duckdb.InterruptException:
        raise QueryStopped(prepared.query.name, within_s) from None
    except duckdb.Error as error:
        message = f"{store.path} cannot be read: {error}"
        raise AuditStoreError(message) from error


@contextlib.contextmanager
def _at_most(cursor: duckdb.DuckDBPyConnection, within_s: float) -> Generator[None]:
    """Interrupt what runs on this cursor when its time is over: again and again, for it may be between statements."""
    over = threading.Event()

    def interrupt() -> None:
        wait_s = within_s
        while not over.wait(wait_s):
            cursor.interrupt()
            wait_s = _AGAIN_S

    watching = threading.Thread(target=interrupt, name="query-limit", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()
