"""Named queries over a running service: every answer is on the trail before it is given.

Guarantees: what is recorded is the query, its parameters, how many rows, and the case; an answer holds everything the
trail held when it was asked for, or says as of which sequence it is; a subject is looked for as it is recorded. Without
a tenant the operator must be permitted the whole trail.

    querying = Querying(service)
    await querying.ask("by_principal", Question(parameters={"sub": "ana", "tenant": "acme"}), asker)
"""

import asyncio
from collections.abc import Mapping

from tasktrail.events.errors import InvalidRequest
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.audit.named import Kind, NamedQuery
from tasktrail.services.access.policy import Action
from tasktrail.services.access.pseudonyms import OURS
from tasktrail.services.operators import Asker
from tasktrail.services.questions import (
    TENANT,
    AnswerShown,
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

OF_OPERATORS = frozenset({"responders"})
"""Queries whose subjects are operators."""


class Querying:
    """Answers questions over a running service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ask(self, name: str, question: Question, asker: Asker) -> AnswerShown:
        """A page of an answer, which is recorded before it is given.

        Raises:
            NoSuchQuery, WrongParameters, InvalidRequest: the question is none.
            NotAuthorised: this operator may not ask that; on the trail.
            Unavailable: it cannot be recorded now.
        """
        query, service = named(name), self._service
        for parameter, text in question.parameters.items():
            refuse_token(parameter, text)
        authority = await service.admission.admitted(
            asker, Action.READ, f"query/{name}", tenant=question.parameters.get(TENANT, "")
        )
        await catch_up(service)
        await asyncio.to_thread(self._refuse_ids, query, question.parameters)
        store = service.auditor.store
        prepared = await asyncio.to_thread(prepare, name, self._as_recorded(name, question.parameters), self._reference)
        answer = await asyncio.to_thread(
            store.ask,
            prepared.query,
            prepared.values,
            tenant=prepared.tenant,
            after=question.after,
            most=question.limit,
        )
        told = prepared.given | ({"after": str(question.after)} if question.after else {})
        await service.admission.note_query(authority, name, told, len(answer.rows), case_id=asker.case_id)
        return shown(prepared, answer)

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
