"""What adapters and the service say to each other: one struct per request, in process or over NATS.

Guarantees: msgspec only, so that a connected MCP server needs nothing else; a request with an unknown field is refused.
Subjects are `tasktrail.cmd.<server>.<action>`; the reply is an `Answered` or a `Failed`. Durations are milliseconds,
times epoch milliseconds; payloads are JSON values.

    request("tasktrail.cmd.reports.get", GetTask(caller=…, call=…, task_id=…))  ->  {"ok": {…TaskView…}}
"""

from typing import Annotated, Any

import msgspec

from tasktrail.events.authority import Method, PrincipalKind, Verification
from tasktrail.events.facts import OnWorkerLost, Status, TaskSupport
from tasktrail.events.subjects import tenant_token

COMMANDS = "tasktrail.cmd"
SIGNALS = "tasktrail.signal"

Text = Annotated[str, msgspec.Meta(max_length=512)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Number = Annotated[int, msgspec.Meta(ge=1 - 2**53, le=2**53 - 1)]
"""An integer that every reader of the trail holds exactly, and every column of the audit store."""
Words = Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)]
HANDLE_MAX = 4096
ACTORS_MAX = 8
LISTED_MAX = 50
"""How many tasks one page of a list holds at most."""
Handle = Annotated[str, msgspec.Meta(max_length=HANDLE_MAX)]
Worker = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{0,64}$")]
"""A process that runs tasks, by a random name of its own: `secrets.token_hex(8)`, say. Empty: none with a lease."""
Ref = Annotated[str, msgspec.Meta(pattern="^[a-z2-7]{32}$")]
TOKEN_MAX = 16 * 1024
Token = Annotated[str, msgspec.Meta(max_length=TOKEN_MAX)]
Json = Any


class Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of the requests and their parts."""


class CredentialFacts(Said, frozen=True, kw_only=True):
    """What the adapter knows of the credential. Never the token: `token_hash` is base64url SHA-256 of it.

    `verification` is what checking it found: anything but `ok` names a credential that the adapter refused.
    """

    method: Method
    verification: Verification = Verification.OK
    verified_by_tasktrail: bool = False
    verified_at_ms: Number = 0
    token_hash: Text = ""
    jti: Text = ""
    aud: Words = ()
    scope: Words = ()
    iat: Number = 0
    exp: Number = 0
    auth_time: Number = 0
    acr: Text = ""
    amr: Words = ()
    kid: Text = ""
    jwks_sha256: Text = ""


class ActorFacts(Said, frozen=True, kw_only=True):
    """One member of the RFC 8693 `act` chain."""

    sub: Text
    iss: Text = ""


class Caller(Said, frozen=True, kw_only=True):
    """Who calls. Without a credential the caller is anonymous.

    `token`: the bearer token itself, for tasktrail to verify; then nothing else that is said here counts. It is never
    stored and in no `repr`. Without it: who calls as the adapter verified it, taken from trusted servers.
    """

    token: Token = ""
    iss: Text = ""
    sub: Text = ""
    client_id: Text = ""
    kind: PrincipalKind = PrincipalKind.USER
    credential: CredentialFacts | None = None
    actors: Annotated[tuple[ActorFacts, ...], msgspec.Meta(max_length=ACTORS_MAX)] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown = {"token": "…" if self.token else ""}
        return [(name, shown.get(name, getattr(self, name))) for name in self.__struct_fields__]

    def __repr__(self) -> str:
        return f"Caller({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


class Call(Said, frozen=True, kw_only=True):
    """The request that carries the command. `rpc_id` is a number or the digest of a text.

    `tracestate` is not recorded: it only says which task's work made the request, if one did (W3C trace context).
    """

    method: Text
    protocol_version: Text = ""
    wire: Text = ""
    rpc_id: Text = ""
    traceparent: Text = ""
    tracestate: Text = ""
    address: Text = ""
    forwarded_for: Text = ""


class CreateTask(Said, frozen=True, kw_only=True):
    """Make a task for one tool call. `ttl_ms` is the tool's wish, None for the default.

    `worker` is the process that runs it, which must `renew` its lease; without one nobody watches over the work.
    `on_worker_lost` says what then becomes of it. `parent_task` is the handle of the task whose work made this call.
    """

    caller: Caller
    call: Call
    command_id: Word
    tool: Text
    tool_sha256: Text = ""
    task_support: TaskSupport
    client_extensions: Words = ()
    client_features: Words = ()
    ttl_ms: Number | None = None
    poll_interval_ms: Number | None = None
    arguments: Json = None
    on_worker_lost: OnWorkerLost = OnWorkerLost.FAIL
    worker: Worker = ""
    parent_task: Handle = ""


class GetTask(Said, frozen=True, kw_only=True):
    """Read a task as its caller may see it. `status_only`: without its result, error and questions."""

    caller: Caller
    call: Call
    task_id: Handle
    status_only: bool = False


class ListTasks(Said, frozen=True, kw_only=True):
    """The tasks that a caller may read, the newest first: at most `limit`, from where `cursor` says."""

    caller: Caller
    call: Call
    cursor: Text = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=LISTED_MAX)] = LISTED_MAX


class UpdateTask(Said, frozen=True, kw_only=True):
    """Answer outstanding requests: JSON values by key."""

    caller: Caller
    call: Call
    command_id: Word
    task_id: Handle
    answers: dict[str, Json]


class CancelTask(Said, frozen=True, kw_only=True):
    """Ask for a task to stop."""

    caller: Caller
    call: Call
    command_id: Word
    task_id: Handle


class WatchTasks(Said, frozen=True, kw_only=True):
    """Open a subscription to some tasks; the answer holds those granted."""

    caller: Caller
    call: Call
    task_ids: Annotated[tuple[Handle, ...], msgspec.Meta(max_length=256)]


class UnwatchTask(Said, frozen=True, kw_only=True):
    """A subscription to one task ended."""

    caller: Caller
    call: Call
    task_id: Handle
    pushes: Number
    reason: Word


class ReportRefusal(Said, frozen=True, kw_only=True):
    """The adapter itself refused a request (capability, header, credential): for the trail.

    A refused credential is `caller.credential`, with its true `verification`.
    """

    caller: Caller
    call: Call
    code: Number
    reason: Word
    task_id: Handle = ""


class OfWork(Said, frozen=True, kw_only=True):
    """Base of what the work says of its task. `worker` is the process that runs it, `attempt` its number: 0 for any."""

    task_ref: Ref
    worker: Worker = ""
    attempt: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class ReportStatus(OfWork, frozen=True, kw_only=True):
    """The work says how far it is."""

    command_id: Word
    message: Annotated[str, msgspec.Meta(max_length=4096)]
    progress: float | None = None
    total: float | None = None


class InputAsk(Said, frozen=True, kw_only=True):
    """One request for input: an MCP method and its parameters."""

    method: Word
    params: Json = None


class RequestInput(OfWork, frozen=True, kw_only=True):
    """The work asks its client for input, by key."""

    command_id: Word
    asks: Annotated[dict[Word, InputAsk], msgspec.Meta(min_length=1, max_length=64)]


class CollectInput(OfWork, frozen=True, kw_only=True):
    """The work asks what has changed for it."""


class CompleteTask(OfWork, frozen=True, kw_only=True):
    """The work is done."""

    command_id: Word
    result: Json
    is_error: bool = False


class FailTask(OfWork, frozen=True, kw_only=True):
    """The work ended in a JSON-RPC error."""

    command_id: Word
    error: "RpcError"


class StopTask(OfWork, frozen=True, kw_only=True):
    """The work has stopped because the task was cancelled."""

    command_id: Word


class LoseWorker(OfWork, frozen=True, kw_only=True):
    """The process doing the work is going away."""

    command_id: Word
    cause: Word


DEFINED_MAX = 256
"""Of how many tools a server tells how they are defined."""


class RenewLease(Said, frozen=True, kw_only=True):
    """A process that runs tasks is alive: one lease for all of them. To be said three times within a lease.

    `tools`: how tools of its server are defined now, by the digest that `CreateTask.tool_sha256` has of them.
    """

    worker: Annotated[Worker, msgspec.Meta(min_length=1)]
    tools: Annotated[dict[Text, Text], msgspec.Meta(max_length=DEFINED_MAX)] = {}


TAKEN_MAX = 1_024


class TakeWork(Said, frozen=True, kw_only=True):
    """A process asks for the work of a task whose worker was lost.

    `tools` are those that it can run, each with the digest of its definition (`CreateTask.tool_sha256`), empty where
    that is not known. `taken` are the orders that it had before, with their attempt: of one that is not among them the
    answer was lost, and it is given again. `wait_ms`: how long to wait for work when there is none.
    """

    worker: Annotated[Worker, msgspec.Meta(min_length=1)]
    tools: Annotated[dict[Text, Text], msgspec.Meta(min_length=1, max_length=256)]
    taken: Annotated[dict[Ref, int], msgspec.Meta(max_length=TAKEN_MAX)] = {}
    wait_ms: Annotated[int, msgspec.Meta(ge=0, le=1_000)] = 0


class RpcError(Said, frozen=True, kw_only=True):
    """A JSON-RPC 2.0 error object."""

    code: Number
    message: str
    data: Json = None


class TaskView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task as its caller may see it. `seq` counts its entries, so that a reader can tell whether it moved."""

    task_id: str
    task_ref: str
    status: Status
    created_at_ms: int
    last_updated_at_ms: int
    ttl_ms: int
    poll_interval_ms: int
    seq: int
    status_message: str | None = None
    input_requests: dict[str, InputAsk] = {}
    result: Json = None
    is_error: bool = False
    error: RpcError | None = None


class WorkView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task as its worker may see it: whether to go on, and the answers so far by key.

    `lost`: the task is no longer that worker's, which is to stop and must not say how it ended.
    """

    task_ref: str
    status: Status
    live: bool
    cancel_requested: bool
    seq: int
    answers: dict[str, Json] = {}
    outcome: str = "accepted"
    reason: str = ""
    lost: bool = False


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """How long a worker counts as alive from its last renewal."""

    lease_ms: int


class Asked(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for input of an earlier attempt, and the answer to it if there was one."""

    key: str
    method: str
    params: Json = None
    answered: bool = False
    answer: Json = None


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Work to be started again: the call as it was made, and what its client was asked before.

    `client_features` are the capabilities that the client declared, by name, as recorded with the creation.
    """

    task_ref: str
    tool: str
    attempt: int
    arguments: Json = None
    client_extensions: tuple[str, ...] = ()
    client_features: tuple[str, ...] = ()
    wire: str = ""
    protocol_version: str = ""
    asked: tuple[Asked, ...] = ()
    created_at_ms: int
    ttl_ms: int
    poll_interval_ms: int
    traceparent: str = ""


class Taken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The work that a process was given, if there was any."""

    order: Order | None = None


class Listed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some of a caller's tasks, as `status_only` shows them, and where the others begin; empty when there are none."""

    tasks: tuple[TaskView, ...] = ()
    next_cursor: str = ""


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks a subscription was granted, as they are now."""

    tasks: tuple[TaskView, ...]


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing more to say."""


class Signal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A nudge on `tasktrail.signal.<server>.<task_ref>`: the task moved. Carries no payload; may be lost.

    `worker` and `attempt` are whose the work is now; `waiting`: nobody's, it is to be taken.
    """

    seq: int
    status: Status
    cancel_requested: bool = False
    live: bool = True
    worker: str = ""
    attempt: int = 0
    waiting: bool = False


class Failed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was not carried out; the fields of `tasktrail.events.errors`."""

    reason: str
    message: str
    code: int
    retriable: bool
    written: str
    retry_after_ms: int = 0


def command_subject(server: str, action: str) -> str:
    """Where a server's requests for `action` go."""
    return f"{COMMANDS}.{tenant_token(server)}.{action}"


def signal_subject(server: str, ref: str) -> str:
    """Where a server hears that one of its tasks moved."""
    return f"{SIGNALS}.{tenant_token(server)}.{ref}"


ACTIONS: dict[str, tuple[type[Said], type[msgspec.Struct]]] = {
    "create": (CreateTask, TaskView),
    "get": (GetTask, TaskView),
    "list": (ListTasks, Listed),
    "update": (UpdateTask, Done),
    "cancel": (CancelTask, Done),
    "watch": (WatchTasks, Granted),
    "unwatch": (UnwatchTask, Done),
    "refusal": (ReportRefusal, Done),
    "report": (ReportStatus, WorkView),
    "ask": (RequestInput, WorkView),
    "collect": (CollectInput, WorkView),
    "complete": (CompleteTask, WorkView),
    "fail": (FailTask, WorkView),
    "stop": (StopTask, WorkView),
    "lose": (LoseWorker, WorkView),
    "renew": (RenewLease, Lease),
    "take": (TakeWork, Taken),
}
"""Every action with the struct it takes and the one it answers with."""
