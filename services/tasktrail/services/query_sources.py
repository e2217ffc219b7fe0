"""Where the command line asks named queries and takes exports: a running service, or the store of a stopped one.

Guarantees: as `sources.py`: the token goes to the service of this data directory or to the URL that was given and
nowhere else; who reads a stopped service's store is told that this is on no trail. The rows of an export are counted as
they come and must be as many as were announced.

    with open_queries(data, url="", token_file=None, case="INC-7") as source:
        source.answer("by_principal", Question(parameters={"sub": "ana"}))
"""

import contextlib
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote

import httpx

from tasktrail.projections.audit.errors import StoreBusy, StoreMissing
from tasktrail.projections.audit.exported import measure
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services import responder
from tasktrail.services.export_formats import PARQUET
from tasktrail.services.exports import ROWS_HEADER, ExportOrder, chunks_of, scope_of
from tasktrail.services.keyring import Keyring, KeyringError
from tasktrail.services.operators import case_of
from tasktrail.services.questions import AnswerShown, Question, prepare, reference, shown
from tasktrail.services.sources import (
    ANSWER_WITHIN_S,
    CONNECT_WITHIN_S,
    NOT_RECORDED,
    NoTrail,
    ServiceSource,
    Unreachable,
    encoded,
    open_service,
)

CHUNK_WITHIN_S = 600.0
"""How long the service may be silent before and within an export: a Parquet file is made whole first."""


class Taken(NamedTuple):
    """An export on its way: how many `rows` it holds, and its bytes."""

    rows: int
    chunks: Iterator[bytes]


class QuerySource(Protocol):
    """What is asked. `note` is what the reader should know about it, empty when nothing."""

    note: str

    def answer(self, name: str, question: Question) -> AnswerShown:
        """A page of an answer."""
        ...

    def export(self, order: ExportOrder) -> contextlib.AbstractContextManager[Taken]:
        """An export, while the block lasts."""
        ...


@contextlib.contextmanager
def open_queries(data: Path, url: str, token_file: Path | None, case: str) -> Generator[QuerySource]:
    """The service at `url`, or the one that runs on `data`, or the store in `data`.

    Raises:
        NoTrail, ResponderError, Unreachable, AuditStoreError, Refused, InvalidRequest: as in `sources`.
    """
    case_of(case)
    if not url and responder.find(data) is None:
        with _open_store(data) as store:
            yield StoreQueries(store, data)
        return
    with open_service(data, url, token_file, case) as service:
        yield ServiceQueries(service)


@contextlib.contextmanager
def _open_store(data: Path) -> Generator[AuditStore]:
    from tasktrail.services.service import AUDIT_FILE  # noqa: PLC0415 - the whole service; half a second

    try:
        store = AuditStore.open(data / AUDIT_FILE, read_only=True)
    except StoreMissing:
        message = (
            f"no tasktrail data in {data}, or no audit store yet; the service makes it: tasktrail up --data {data}"
        )
        raise NoTrail(message) from None
    except StoreBusy as busy:
        message = f"{busy}; if it is a tasktrail that is starting, try again when it says that it is ready"
        raise Unreachable(message) from None
    with contextlib.closing(store):
        yield store


class ServiceQueries(ServiceSource):
    """A running service: the same connection as `service`, which stays its owner."""

    def __init__(self, service: ServiceSource) -> None:
        self._url, self._token_file, self._client = service._url, service._token_file, service._client  # noqa: SLF001 - the same class

    def answer(self, name: str, question: Question) -> AnswerShown:
        """As the service answers; recorded."""
        return self.order(f"/queries/{quote(name, safe='')}", question, AnswerShown, ANSWER_WITHIN_S)

    @contextlib.contextmanager
    def export(self, order: ExportOrder) -> Generator[Taken]:
        """As the service streams it; recorded."""
        try:
            with self._client.stream(
                "POST",
                "/api/v1/exports",
                content=encoded(order),
                headers={"Content-Type": "application/json"},
                timeout=httpx.Timeout(CHUNK_WITHIN_S, connect=CONNECT_WITHIN_S),
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer)
                yield Taken(_rows(answer), answer.iter_bytes())
        except httpx.RemoteProtocolError:
            message = f"the service at {self._url} broke the export off, so nothing of it was kept; its log says why"
            raise Unreachable(message) from None
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None


def _rows(answer: httpx.Response) -> int:
    told = answer.headers.get(ROWS_HEADER, "")
    if not told.isdecimal():
        message = f"what answers at {answer.url.copy_with(path='/')} is no tasktrail of this version"
        raise Unreachable(message)
    return int(told)


class StoreQueries:
    """The store of a service that does not run."""

    def __init__(self, store: AuditStore, data: Path) -> None:
        self.note = NOT_RECORDED.format(data=data)
        self._store, self._data = store, data

    def answer(self, name: str, question: Question) -> AnswerShown:
        """As of the store's last sequence."""
        encoded(question)
        prepared = prepare(name, question.parameters, self._reference)
        answer = self._store.ask(
            prepared.query, prepared.values, tenant=prepared.tenant, after=question.after, most=question.limit
        )
        return shown(prepared, answer)

    @contextlib.contextmanager
    def export(self, order: ExportOrder) -> Generator[Taken]:
        """As of the store's last sequence."""
        scope = scope_of(order, self._reference)
        extent = measure(self._store, scope)
        with contextlib.ExitStack() as stack:
            spool = Path(stack.enter_context(tempfile.TemporaryDirectory())) if order.format == PARQUET else self._data
            yield Taken(extent.rows, chunks_of(self._store, order.format, scope, extent, spool))

    def _reference(self, task: str) -> str:
        return reference(self._store, self._keyed, task)

    def _keyed(self, task: str) -> str:
        try:
            return Keyring.open(self._data).ref(task)
        except KeyringError as error:
            message = f"no task of this trail has this reference; whether it is an id cannot be told: {error}"
            raise NoTrail(message) from None
