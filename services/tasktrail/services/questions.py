"""Named queries as they are asked and answered: the catalogue, questions, answers, and what of a question is recorded.

Guarantees: a task id becomes its reference before anything is done with it; what looks like a token is refused, and no
message repeats it; values are JSON's own. No service is needed: the command line asks the store of a stopped one so.

    prepared = prepare("timeline", {"task": "…"}, ref_of)
    shown(prepared, store.ask(prepared.query, prepared.values, tenant=prepared.tenant))
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from importlib.resources import files
from typing import Annotated, TypeAlias

import msgspec

from tasktrail.events.errors import InvalidRequest, TasktrailError
from tasktrail.events.subjects import is_task_ref
from tasktrail.projections.audit.named import (
    Answer,
    Column,
    Kind,
    NamedQuery,
    Value,
    catalogue,
    parse,
    read_parameters,
)
from tasktrail.projections.audit.store import AuditStore
from tasktrail.services.escaping import rfc3339
from tasktrail.services.orders import NoSuchTask

ROWS_DEFAULT = 100
ROWS_MAX = 10_000
PARAMETERS_MAX = 32
TEXT_MAX = 4_096
TENANT = "tenant"
"""The parameter that every query takes beside its own: whose part of the trail is asked about."""
_TOKEN = re.compile(r"eyJ[\w-]{8,}(\.[\w-]*){2,4}", re.ASCII)
"""A JWT, signed or encrypted: its header begins with a brace and a quotation mark."""

Cell: TypeAlias = str | int | float | bool | None
"""A value of an answer; times are RFC 3339 in UTC."""


class NoSuchQuery(TasktrailError):
    """No query of the catalogue has this name."""

    http_status = 404
    reason = "no_such_query"

    def __init__(self, name: str) -> None:
        known = ", ".join(catalogue())
        super().__init__(f"there is no query {name[:64]!r}; there are {known}. `tasktrail query` says what they answer")


class QueryStopped(InvalidRequest):
    """A query took longer than it may and was ended; that is on record."""

    http_status = 422
    written = "refusal"
    reason = "limit_reached"

    def __init__(self, name: str, within_s: float) -> None:
        super().__init__(f"{name} was ended after {within_s:g} s; ask for less: a shorter time, one task, a tenant")


class NoSuchTenant(InvalidRequest):
    """Nothing of this tenant is on the trail; an answer without rows would look as if nothing had happened."""

    http_status = 404
    reason = "no_such_tenant"


class ParameterShown(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter of a query.

    `kind`: text, integer, time (RFC 3339), sequence, boolean, ref (a task), or "one of" and its values with commas.
    """

    name: str
    kind: str
    required: bool
    default: str | None
    what: str


class QueryShown(msgspec.Struct, frozen=True, kw_only=True):
    """A query of the catalogue. `one_of`: exactly one of these parameters has to be given; empty for no such rule."""

    name: str
    title: str
    description: str
    parameters: tuple[ParameterShown, ...]
    one_of: tuple[str, ...]


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked: the parameters as text, and which page of the answer.

    `after`: rows after this sequence, as the page before said; `limit`: how many rows. The rows of one sequence are
    never on two pages, so a page may be a little longer.
    """

    parameters: Annotated[
        dict[str, Annotated[str, msgspec.Meta(max_length=TEXT_MAX)]], msgspec.Meta(max_length=PARAMETERS_MAX)
    ] = {}
    after: Annotated[int, msgspec.Meta(ge=0)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=ROWS_MAX)] = ROWS_DEFAULT


class ColumnShown(msgspec.Struct, frozen=True, kw_only=True):
    """A column of an answer; `type` is DuckDB's. A TIMESTAMP is UTC."""

    name: str
    type: str


class AnswerShown(msgspec.Struct, frozen=True, kw_only=True):
    """A page of an answer: its rows in the order of its columns, the first of which is a stream sequence.

    `parameters`: as they are recorded, a task as its reference. `more`: another page follows `after` this sequence.
    `as_of`: the last sequence of the trail that the answer knows of.
    """

    query: str
    parameters: dict[str, str]
    columns: tuple[ColumnShown, ...]
    rows: list[list[Cell]]
    more: bool
    after: int
    as_of: int


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A question as the store is asked: `given` is what may be recorded of it."""

    query: NamedQuery
    given: dict[str, str]
    values: dict[str, Value]
    tenant: str | None


def shown_catalogue() -> list[QueryShown]:
    """Every query, in the order of the names."""
    return [_query_shown(query) for query in catalogue().values()]


def _query_shown(query: NamedQuery) -> QueryShown:
    takes = [
        ParameterShown(name=one.name, kind=one.type, required=one.required, default=one.default, what=one.what)
        for one in query.parameters
    ]
    return QueryShown(
        name=query.name,
        title=query.title,
        description=query.description,
        parameters=tuple(takes),
        one_of=query.one_of,
    )


def named(name: str) -> NamedQuery:
    """The query with this name. Raises NoSuchQuery."""
    query = catalogue().get(name)
    if query is None:
        raise NoSuchQuery(name)
    return query


def prepare(name: str, given: Mapping[str, str], ref_of: Callable[[str], str]) -> Prepared:
    """A question made ready: `ref_of` gives the reference of a task from its reference or id.

    Raises:
        NoSuchQuery, WrongParameters, InvalidRequest: it cannot be asked; nothing that is secret is in the message.
    """
    query = named(name)
    for parameter, text in given.items():
        refuse_token(parameter, text)
    tenant = given.get(TENANT)
    if tenant == "":
        message = "tenant is empty; leave it out to ask about every tenant"
        raise InvalidRequest(message)
    own = {parameter: text for parameter, text in given.items() if parameter != TENANT}
    own |= {one.name: ref_of(own[one.name]) for one in query.parameters if one.kind is Kind.REF and own.get(one.name)}
    values = read_parameters(query, own)
    return Prepared(query=query, given=own | ({TENANT: tenant} if tenant else {}), values=values, tenant=tenant)


def refuse_token(name: str, text: str) -> None:
    """Refuse what is a token and not the name of one: parameters are recorded.

    Raises:
        InvalidRequest: it is; the message does not repeat it.
    """
    if _TOKEN.fullmatch(text.strip()):
        message = (
            f"{name[:64]!r} is given a token itself, and parameters are recorded: give its base64url SHA-256; on the "
            "command line write token=- and give the token on standard input"
        )
        raise InvalidRequest(message)


def reference(store: AuditStore, keyed: Callable[[str], str], task: str) -> str:
    """The reference of a task from its reference or id, which look alike. Blocks.

    Raises:
        NoSuchTask: nothing was ever recorded under either; an empty answer would look as if nothing had happened.
    """
    if is_task_ref(task) and is_known(store, task):
        return task
    ref = keyed(task)
    if not is_known(store, ref):
        raise NoSuchTask
    return ref


def is_known(store: AuditStore, ref: str) -> bool:
    """Whether anything was ever recorded under this reference. Blocks."""
    return bool(store.ask(_known_ref(), {"ref": ref}, tenant=None, most=1).rows)


@cache
def _known_ref() -> NamedQuery:
    folder = files("tasktrail.projections.audit") / "queries"
    return parse("known_ref", (folder / "known_ref.sql").read_text(encoding="utf-8"))


def shown(prepared: Prepared, answer: Answer) -> AnswerShown:
    """An answer as it is told."""
    return AnswerShown(
        query=prepared.query.name,
        parameters=prepared.given,
        columns=tuple(ColumnShown(name=column.name, type=column.type) for column in answer.columns),
        rows=[[_cell(value) for value in row] for row in answer.rows],
        more=answer.more,
        after=answer.after,
        as_of=answer.as_of,
    )


def _cell(value: object) -> Cell:
    if isinstance(value, datetime):
        return rfc3339(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def columns_of(answer: AnswerShown) -> list[Column]:
    """The columns of an answer as the store names them."""
    return [Column(name=one.name, type=one.type) for one in answer.columns]
