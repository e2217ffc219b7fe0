"""W3C trace context of a task's work, and the task whose work a request came from. Pure.

Guarantees: what leaves a run names its task by a digest of the reference only, so it opens nothing; the same for every
attempt and every replica. The trace of the creating request goes on; without one the run begins a trace of its own.
What a request says of its trace is its caller's word.

    TraceContext.of_run(ref, traceparent="00-4bf9…-00f0…-01")  ->  traceparent "00-4bf9…-<run_span(ref)>-01"
    runs_named(traceparent, tracestate)  ->  the spans to look a task up by

Source: W3C Trace Context (Recommendation of 2021-11-23), sections 3.2 (traceparent) and 3.3 (tracestate).
"""

import hashlib
import re
from typing import NamedTuple

STATE_KEY = "tasktrail"
"""The key of our member of `tracestate`: it names the run also where others put spans of their own between."""
STATE_MAX = 512
"""How many characters of a `tracestate` travel: as many as the Recommendation asks for (section 3.3.1.5)."""
_MEMBERS_MAX = 32

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_SPAN = re.compile(r"(?!0{16})[0-9a-f]{16}")
_MEMBER = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}")


class TraceContext(NamedTuple):
    """The two members as they travel in `_meta` or in headers; empty text for what is not there."""

    traceparent: str = ""
    tracestate: str = ""

    @classmethod
    def of_run(cls, ref: str, traceparent: str = "", tracestate: str = "") -> "TraceContext":
        """What a task's work hands on, given the creating request's context."""
        span = run_span(ref)
        if _TRACEPARENT.fullmatch(traceparent):
            _, trace_id, _, flags = traceparent.split("-")
            others = [one for one in _members(tracestate) if not one.startswith(f"{STATE_KEY}=")]
        else:
            trace_id, flags, others = _digest(b"run-trace\0", ref, 32), "00", []
        return cls(f"00-{trace_id}-{span}-{flags}", stated(",".join([f"{STATE_KEY}={span}", *others])))

    def carried(self) -> dict[str, str]:
        """As members of `_meta`, or headers."""
        return {name: value for name, value in zip(self._fields, self, strict=True) if value}


def run_span(ref: str) -> str:
    """The span id of a task's work: 16 hex digits."""
    return _digest(b"run-span\0", ref, 16)


def runs_named(traceparent: str, tracestate: str = "") -> tuple[str, ...]:
    """The spans that may be of the run which made a request, the likelier first."""
    if not _TRACEPARENT.fullmatch(traceparent):
        return ()
    ours = [one.partition("=")[2] for one in _members(tracestate) if one.startswith(f"{STATE_KEY}=")]
    found = [*ours[:1], traceparent.split("-")[2]]
    return tuple(dict.fromkeys(span for span in found if _SPAN.fullmatch(span)))


def stated(tracestate: str) -> str:
    """As much of a `tracestate` as travels: whole members of the documented form, from the left."""
    kept: list[str] = []
    size = -1
    for one in _members(tracestate):
        size += len(one) + 1
        if size > STATE_MAX:
            break
        kept.append(one)
    return ",".join(kept)


def _members(tracestate: str) -> list[str]:
    said = [one.strip(" \t") for one in tracestate[: 4 * STATE_MAX].split(",")]
    return [one for one in said if _MEMBER.fullmatch(one)][:_MEMBERS_MAX]


def _digest(label: bytes, ref: str, digits: int) -> str:
    return hashlib.sha256(label + ref.encode()).hexdigest()[:digits]
