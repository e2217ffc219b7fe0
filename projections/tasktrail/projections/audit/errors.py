"""What can be wrong with an audit store, each with what to do about it.

AuditStoreError
├── StoreMissing     no file there
├── StoreBusy        another process holds it
├── NotAnAuditStore  a file, but none of ours
├── StoreTooNew      written by a newer tasktrail
├── StoreTooOld      must be brought up to date first, by opening it for writing, or be rebuilt
└── AnotherTrail     it was read from another stream than the one given
"""

from tasktrail.events.errors import TrailError


class AuditStoreError(TrailError):
    """Base of all of them; the message names the file and says what to do."""

    reason = "audit_store"


class StoreMissing(AuditStoreError):
    """There is no file of this name, or no directory to make it in."""

    reason = "audit_store_missing"


class StoreBusy(AuditStoreError):
    """One process holds the file at a time, and it is not this one. `pid` is the holder's, 0 when not known."""

    reason = "audit_store_busy"

    def __init__(self, message: str, pid: int = 0) -> None:
        super().__init__(message)
        self.pid = pid


class NotAnAuditStore(AuditStoreError):
    """The file is no DuckDB database, or holds other tables than ours."""

    reason = "not_an_audit_store"


class StoreTooNew(AuditStoreError):
    """The file's schema is newer than this code."""

    reason = "audit_store_too_new"


class StoreTooOld(AuditStoreError):
    """The file's schema is older than this code, and it was opened for reading only or has to be rebuilt."""

    reason = "audit_store_too_old"


class AnotherTrail(AuditStoreError):
    """The file was read from another stream."""

    reason = "another_trail"


class StreamCut(AnotherTrail):
    """The stream ends before what the file has read of it."""

    reason = "stream_cut"
