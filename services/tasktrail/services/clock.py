"""The wall clock, in the units everything here uses.

rfc3339(now_ms())  ->  "2026-11-22T11:00:00.000Z"
"""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """The wall clock, epoch milliseconds."""
    return time.time_ns() // 1_000_000


def rfc3339(at_ms: int) -> str:
    """Epoch milliseconds as RFC 3339 in UTC with milliseconds."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
