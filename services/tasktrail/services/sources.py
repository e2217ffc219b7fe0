"""Where the command line reads a trail: the running service over HTTP, or the store of a stopped one.

Guarantees: the token goes to the service of this data directory, or to the URL that was given, and nowhere else: no
redirect is followed, and no proxy is asked for an address of this machine; a stopped service's store is opened for
reading only, and the reader is told that this reading is on no trail; a task argument is tried as a reference and as
an id. Every failure is one of ours and says what to do.

    with open_source(data, url="") as source:
        source.timeline(task)
    with open_service(data, url="", token_file=None, case="INC-7") as service:
        service.order("/holds", HoldOrder(…), Governed)
"""

import contextlib
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import httpx
import msgspec

from tasktrail.events.errors import InvalidRequest, TasktrailError, Unavailable
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.audit.errors import StoreBusy
from tasktrail.projections.audit.store import AuditStore, TaskFilter
from tasktrail.projections.audit.timeline import Step, TaskShown, Timeline
from tasktrail.services import responder
from tasktrail.services.addresses import is_loopback
from tasktrail.services.http.edge import UNAUTHORISED
from tasktrail.services.http.problems import Problem
from tasktrail.services.http.tailing import BEAT_S
from tasktrail.services.keyring import Keyring, KeyringError
from tasktrail.services.operators import CASE_HEADER, case_of
from tasktrail.services.orders import NoSuchTask

ANSWER_WITHIN_S = 30.0
CONNECT_WITHIN_S = 5.0
NO_TEXT = "an argument or option holds bytes that are no text in UTF-8; nothing was done"
SAME_PERSON = "same_person"
"""The reason of a refusal that takes another person: the order was right, and was not done."""
NOT_RECORDED = "no service runs on {data}: read from its store; this reading is not recorded on the trail"

T = TypeVar("T")


class NoTrail(TasktrailError):
    """The directory is no data directory of tasktrail's."""

    reason = "no_trail"


class Refused(InvalidRequest):
    """The service does not take this request: a wrong token, host or parameter."""


class NotDone(Refused):
    """What the order is about is not there, or does not admit it now."""


class Unreachable(Unavailable):
    """The service, or the store, does not answer."""

    reason = "unreachable"


class Source(Protocol):
    """What the command line reads. `note` is what the reader should know about it, empty when nothing."""

    note: str

    def timeline(self, task: str) -> Timeline | None:
        """The timeline of the task with this reference or id; None when nothing was recorded under either."""
        ...

    def tasks(self, wanted: TaskFilter, most: int) -> Sequence[TaskShown]:
        """Tasks, the newest first."""
        ...

    def tail(self, since: int | None) -> Iterator[Step]:
        """Steps after a sequence (None: from now on), as they are recorded."""
        ...


@contextlib.contextmanager
def open_source(data: Path, url: str = "", token_file: Path | None = None, case: str = "") -> Generator[Source]:
    """The service at `url`, or the one that runs on `data`, or the store in `data`; as `open_service` for the former.

    Raises:
        NoTrail, ResponderError, Unreachable, AuditStoreError, Refused, InvalidRequest: see there.
    """
    case_of(case)
    running = None if url else responder.find(data)
    if not url and running is None:
        with _open_store(data) as store:
            yield store
        return
    with open_service(data, url or (running.url if running else ""), token_file, case) as service:
        yield service


@contextlib.contextmanager
def open_service(data: Path, url: str, token_file: Path | None, case: str = "") -> Generator["ServiceSource"]:
    """The service at `url`, or the one that runs on `data`, as the operator whose token `token_file` holds (None: the
    responder token of `data`), in the matter that `case` names.

    Raises:
        Unreachable, ResponderError, Refused: no service runs there; there is no token that may be used.
        InvalidRequest: the case cannot be recorded.
    """  # noqa: D205 - one paragraph
    running = None if url else responder.find(data)
    if not url and running is None:
        message = f"no service runs on {data}, and what operators do is recorded; start it: tasktrail up --data {data}"
        raise Unreachable(message)
    token = responder.read_token(data) if token_file is None else _operator_token(token_file)
    with ServiceSource(url or (running.url if running else ""), token, token_file, case) as service:
        yield service


def _operator_token(path: Path) -> str:
    """The token in a file that nobody else can read."""
    try:
        mode, token = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read an operator's token from {path}: {getattr(error, 'strerror', '') or 'it is no text'}"
        raise Refused(message) from None
    if mode & 0o077:
        message = f"{path} can be read by others (mode {stat.S_IMODE(mode):o}); run: chmod 600 {path}"
        raise Refused(message)
    if not token or len(token.split()) > 1:
        message = f"{path} holds no operator's token: one word, alone in the file"
        raise Refused(message)
    return token


class ServiceSource:
    """A running service. `token_file` is where the token came from, None for the responder's own.

    `case` names the matter in which is asked: it is recorded with every reading.
    """

    note = ""

    def __init__(self, url: str, token: str, token_file: Path | None = None, case: str = "") -> None:
        host = _host(url)
        if not host:
            message = f"{url} is no http or https address of a service; write it like http://127.0.0.1:8420"
            raise InvalidRequest(message)
        self._url, self._token_file = url, token_file
        self._client = httpx.Client(
            base_url=url,
            headers=_headers(token, case),
            timeout=httpx.Timeout(ANSWER_WITHIN_S, connect=CONNECT_WITHIN_S),
            trust_env=not is_loopback(host),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def timeline(self, task: str) -> Timeline | None:
        """As the service has it; the reading is recorded."""
        answer = self._ask("POST", "/api/v1/timeline", json={"task": task})
        problem = _problem(answer)
        return None if problem and problem.reason == NoSuchTask.reason else self._read(answer, Timeline)

    def tasks(self, wanted: TaskFilter, most: int) -> Sequence[TaskShown]:
        """As the service has them; the reading is recorded."""
        asked = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
        asked["status"] = list(asked.pop("statuses", ()))
        if "live" in asked:
            asked["live"] = str(asked["live"]).lower()
        answer = self._ask("GET", "/api/v1/tasks", params={**asked, "limit": most})
        return self._read(answer, list[TaskShown])

    def tail(self, since: int | None) -> Iterator[Step]:
        """Until the service stops, which is `Unreachable` with the sequence to go on from."""
        at = since
        timeout = httpx.Timeout(3 * BEAT_S, connect=CONNECT_WITHIN_S)
        try:
            with self._client.stream(
                "GET", "/api/v1/tail", params={} if since is None else {"since": since}, timeout=timeout
            ) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(answer)
                for name, value in _events(answer.iter_lines()):
                    if name == "id":
                        at = int(value)
                    elif name == "step":
                        yield self._decoded(value.encode(), Step)
                    elif name == "problem":
                        raise Unreachable(self._decoded(value.encode(), Problem).detail)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        further = "" if at is None else f"; go on with --since {at}"
        message = f"the service at {self._url} stopped{further}"
        raise Unreachable(message)

    def ask(self, path: str, kind: type[T], **asked: str | float | bool | None) -> T:
        """What `GET /api/v1{path}` answers; members of `asked` that are None are left out.

        Raises:
            Refused, NotDone, Unreachable: it does not.
        """
        told = {name: str(value).lower() if isinstance(value, bool) else value for name, value in asked.items()}
        parameters = {name: value for name, value in told.items() if value is not None}
        return self._read(self._ask("GET", f"/api/v1{path}", params=parameters), kind)

    def order(self, path: str, order: msgspec.Struct, kind: type[T], within_s: float = ANSWER_WITHIN_S) -> T:
        """What `POST /api/v1{path}` answers to this order, within so many seconds. Raises as `ask`."""
        headers = {"Content-Type": "application/json"}
        body = encoded(order)
        timeout = httpx.Timeout(within_s, connect=CONNECT_WITHIN_S)
        return self._read(self._ask("POST", f"/api/v1{path}", content=body, headers=headers, timeout=timeout), kind)

    def _ask(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        try:
            return self._client.request(method, path, **content)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        except UnicodeEncodeError:
            raise InvalidRequest(NO_TEXT) from None

    def _unreachable(self, error: httpx.HTTPError) -> Unreachable:
        why = str(error) or type(error).__name__
        message = (
            f"no service answers at {self._url} ({why}); is it still starting? `tasktrail up` says when it is ready"
        )
        return Unreachable(message)

    def _read(self, answer: httpx.Response, kind: type[T]) -> T:
        if not answer.is_success:
            raise self._refusal(answer)
        return self._decoded(answer.content, kind)

    def _decoded(self, body: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            message = f"what answers at {self._url} is no tasktrail of this version: {error}"
            raise Unreachable(message) from None

    def _refusal(self, answer: httpx.Response) -> TasktrailError:
        problem = _problem(answer)
        if problem is None:
            return Unreachable(f"what answers at {self._url} is no tasktrail: it says {answer.status_code}")
        if problem.reason == UNAUTHORISED and self._token_file is not None:
            return Refused(f"the token in {self._token_file} is no operator's of the service at {self._url}")
        gone = answer.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.GONE}
        if gone or problem.reason == SAME_PERSON:
            return NotDone(problem.detail)
        if problem.reason == UNAUTHORISED:
            return Refused(f"the service at {self._url} has another responder token; name its data directory (--data)")
        later = answer.is_server_error or problem.retriable
        return Unreachable(problem.detail) if later else Refused(problem.detail)


def _host(url: str) -> str:
    """The host of an address of HTTP; empty when it is none."""
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeEncodeError):
        return ""
    return address.host if address.scheme in {"http", "https"} else ""


def encoded(order: msgspec.Struct) -> bytes:
    """An order as it is sent.

    Raises:
        InvalidRequest: something in it is no text.
    """
    try:
        return msgspec.json.encode(order)
    except UnicodeEncodeError:
        raise InvalidRequest(NO_TEXT) from None


def _headers(token: str, case: str) -> dict[bytes, bytes]:
    headers = {b"Authorization": f"Bearer {token}".encode()}
    return headers | ({CASE_HEADER.encode(): case_of(case).encode()} if case else {})


def _problem(answer: httpx.Response) -> Problem | None:
    """What a refusal says; None when it is none, or not one of ours."""
    if answer.is_success:
        return None
    try:
        return msgspec.json.decode(answer.content, type=Problem)
    except msgspec.DecodeError:
        return None


def _events(lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Server-sent events as (event, data), and ids as ("id", value). One line of data each, as `tailing.py` writes."""
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data" and name:
            yield name, value
        elif field == "id":
            yield field, value


class StoreSource:
    """The store of a service that does not run."""

    def __init__(self, store: AuditStore, keyring: Callable[[], Keyring], data: Path) -> None:
        self.note = NOT_RECORDED.format(data=data)
        self._store, self._keyring, self._data = store, keyring, data

    def timeline(self, task: str) -> Timeline | None:
        """As of the store's last sequence."""
        found = self._store.timeline(task) if is_task_ref(task) else None
        if found is not None:
            return found
        try:
            return self._store.timeline(self._keyring().ref(task))
        except KeyringError as error:
            message = f"no task of this trail has this reference; whether it is an id cannot be told: {error}"
            raise NoTrail(message) from None

    def tasks(self, wanted: TaskFilter, most: int) -> Sequence[TaskShown]:
        """As of the store's last sequence."""
        encoded(wanted)
        return self._store.tasks(wanted, most=most)

    def tail(self, since: int | None) -> Iterator[Step]:
        """A stopped service records nothing."""
        after = "" if since is None else f" after {since}"
        message = (
            f"nothing is recorded{after}: no service runs on {self._data}; start it: tasktrail up --data {self._data}"
        )
        raise Unreachable(message)


@contextlib.contextmanager
def _open_store(data: Path) -> Generator[StoreSource]:
    from tasktrail.services.service import AUDIT_FILE  # noqa: PLC0415 - the whole service; half a second

    path = data / AUDIT_FILE
    if not path.exists():
        if Keyring.exists(data):
            message = f"the audit store {path} is not there; the service rebuilds it: tasktrail up --data {data}"
        else:
            message = f"no tasktrail data in {data}; start one with: tasktrail up --data {data}"
        raise NoTrail(message)
    try:
        store = AuditStore.open(path, read_only=True)
    except StoreBusy as busy:
        message = f"{busy}; if it is a tasktrail that is starting, try again when it says that it is ready"
        raise Unreachable(message) from None
    try:
        yield StoreSource(store, lambda: Keyring.open(data), data)
    finally:
        store.close()
