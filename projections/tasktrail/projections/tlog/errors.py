"""Every error of the Merkle tree, its notes and its files, in one tree.

Guarantees: the message names the file or the line, what was expected and what is there, and what to do next.

    TasktrailError
    ├── MalformedNote      a signed note, a checkpoint or a verifier key is not of its format
    ├── BadProof           a proof about a head does not hold
    └── LogError           the log refuses what was asked of it; nothing was written
        ├── NoLog          there is no log in this directory
        ├── LogBusy        another process writes this log
        ├── NotInLog       the log has no such leaf, or is not of that size yet
        ├── LogFailed      an earlier write failed: open the log again
        └── LogDamaged     a file of the log does not say what its checkpoint says
"""

from typing import ClassVar

from tasktrail.events.errors import TasktrailError


class MalformedNote(TasktrailError):
    """Not a signed note, a checkpoint or a verifier key as their specifications have it."""

    code: ClassVar[int] = -32602
    http_status: ClassVar[int] = 400
    reason: ClassVar[str] = "malformed_note"


class BadProof(TasktrailError):
    """A proof about the head of a subject does not lead to the root it was held against."""

    code: ClassVar[int] = -32602
    http_status: ClassVar[int] = 400
    reason: ClassVar[str] = "bad_proof"


class LogError(TasktrailError):
    """The log refuses what was asked of it; nothing was written."""

    reason: ClassVar[str] = "log"


class NoLog(LogError):
    """There is no log in this directory."""

    reason: ClassVar[str] = "no_log"


class LogBusy(LogError):
    """Another process has this log open for writing."""

    reason: ClassVar[str] = "log_busy"


class NotInLog(LogError):
    """The log has no such leaf, or has not grown to that size yet."""

    code: ClassVar[int] = -32602
    http_status: ClassVar[int] = 404
    reason: ClassVar[str] = "not_in_log"


class LogFailed(LogError):
    """An earlier write failed, so what is in memory can no longer be trusted: open the log again."""

    reason: ClassVar[str] = "log_failed"


class LogDamaged(LogError):
    """A file of the log does not say what its checkpoint says. `path`: the file, relative to the log's directory."""

    reason: ClassVar[str] = "log_damaged"

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path}: {what}")
        self.path = path
        self.what = what
