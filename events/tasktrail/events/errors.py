"""Every error a caller can meet, in one tree, each with its code on each surface.

Guarantees: the message says what to do; `written` says whether something is on the trail; an unknown, foreign,
expired or malformed handle is always the same `TaskNotFound`, with the same text.

    TasktrailError                        JSON-RPC  HTTP  retriable  written
    ├── InvalidRequest                     -32602    400      no     nothing
    │   └── InvalidAnswer                  -32602    400      no     refusal
    ├── TaskNotFound                       -32602    404      no     denial
    ├── MissingCapability                  -32021    400      no     denial
    ├── HeaderMismatch                     -32020    400      no     denial
    ├── NotAuthorised                      -32001    403      no     denial
    ├── AuthorityPaused                    -32001    403     yes     denial
    ├── RateLimited                        -32029    429     yes     denial
    ├── CommandRefusedError                -32600    409      no     refusal
    ├── CommandReused                      -32600    409      no     nothing
    ├── TooLarge                           -32602    413      no     nothing
    ├── Unavailable                        -32603    503     yes
    │   ├── NothingWritten                 -32603    503     yes     nothing
    │   └── MaybeWritten                   -32603    504     yes     maybe
    └── TrailError                         -32603    500      no
        ├── MalformedEntry                 -32603    500      no
        └── ChainBroken                    -32603    500      no
"""

from typing import ClassVar

NOT_FOUND_TEXT = "Task not found"
"""The one text for every handle that opens nothing for this caller."""


class TasktrailError(Exception):
    """Base of all of them. `code` is the JSON-RPC code, `http_status` the HTTP one, `reason` a stable word.

    `retry_after_ms`: when it makes sense to send a retriable one again; 0 when nobody knows.
    """

    code: ClassVar[int] = -32603
    http_status: ClassVar[int] = 500
    retriable: ClassVar[bool] = False
    written: ClassVar[str] = "nothing"
    reason: ClassVar[str] = "internal"
    retry_after_ms: int = 0

    @property
    def message(self) -> str:
        """The text for the caller."""
        return str(self) or self.reason


class InvalidRequest(TasktrailError):
    """The request is not of the documented form; the message names the field and what it should be."""

    code = -32602
    http_status = 400
    reason = "invalid_request"


class InvalidAnswer(InvalidRequest):
    """An input answer does not satisfy the schema of its request; none of the answers sent with it was taken."""

    written = "refusal"
    reason = "invalid_answer"


class TooLarge(InvalidRequest):
    """A payload exceeds its documented maximum."""

    http_status = 413
    reason = "too_large"


class TaskNotFound(TasktrailError):
    """This handle opens nothing for this caller: unknown, foreign, expired, revoked or malformed alike."""

    code = -32602
    http_status = 404
    written = "denial"
    reason = "not_found"

    def __init__(self) -> None:
        super().__init__(NOT_FOUND_TEXT)


class MissingCapability(TasktrailError):
    """The client did not declare the tasks extension (SEP-2663)."""

    code = -32021
    http_status = 400
    written = "denial"
    reason = "missing_capability"


class HeaderMismatch(TasktrailError):
    """`Mcp-Name` says another task than the body does (SEP-2243)."""

    code = -32020
    http_status = 400
    written = "denial"
    reason = "header_mismatch"


class NotAuthorised(TasktrailError):
    """Policy or configuration does not let this caller do this."""

    code = -32001
    http_status = 403
    written = "denial"
    reason = "not_authorised"


class AuthorityPaused(TasktrailError):
    """The creator's authority does not stand, and the policy makes the work wait until it does. Send it again later."""

    code = -32001
    http_status = 403
    retriable = True
    written = "denial"
    reason = "authority_paused"


class RateLimited(TasktrailError):
    """More than this caller, or its tenant, may have at once or in this time. `retry_after_ms`: when to come again."""

    code = -32029
    http_status = 429
    retriable = True
    written = "denial"
    reason = "rate_limited"

    def __init__(self, message: str, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


_ABSENT = {
    "no_such_grant": "the task has no such grant (no_such_grant); `tasktrail handles` shows those it has",
    "no_such_hold": "the task has no such hold (no_such_hold); `tasktrail timeline` shows those it has",
}


class CommandRefusedError(TasktrailError):
    """The task's status does not admit the command; the refusal is on the trail."""

    code = -32600
    http_status = 409
    written = "refusal"
    reason = "refused"

    def __init__(self, command: str, status: str, why: str) -> None:
        because = _ABSENT.get(why) or f"the task is {status} ({why})"
        super().__init__(f"{command} refused: {because}; nothing changed, the refusal is on record")
        self.command, self.status, self.why = command, status, why


class CommandReused(TasktrailError):
    """A command id was used before for another command."""

    code = -32600
    http_status = 409
    reason = "command_reused"


class Unavailable(TasktrailError):
    """The trail cannot be reached or does not answer."""

    http_status = 503
    retriable = True
    reason = "unavailable"


class NothingWritten(Unavailable):
    """No entry could be written in time; the same command may be sent again."""

    reason = "nothing_written"


class MaybeWritten(Unavailable):
    """The trail did not confirm in time. Send the same command id again: it returns the outcome."""

    http_status = 504
    written = "maybe"
    reason = "maybe_written"


class TrailError(TasktrailError):
    """The trail itself is not what it should be; a person must look."""

    reason = "trail"


class MalformedEntry(TrailError):
    """Bytes in the trail that are no entry of a version this code reads."""

    reason = "malformed_entry"


class ChainBroken(TrailError):
    """An entry does not continue its task's chain."""

    reason = "chain_broken"
