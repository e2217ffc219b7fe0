"""The W3C trace context of the task whose work runs here and now: what a tool hands on to the servers it calls.

Guarantees: inside a run `current()` names it, for everything that is awaited, started or sent to a thread from there;
outside it is empty. It holds no task id. Where OpenTelemetry is installed the run is its remote parent as well, so that
clients which pass their trace on (the MCP SDK's own, FastMCP's) need not be told.

    meta = tracing.current().carried()      # {"traceparent": "00-…", "tracestate": "tasktrail=…"}
    await session.call_tool("other", {}, meta=meta)
"""

import contextlib
from collections.abc import Generator
from contextvars import ContextVar

from tasktrail.events.tracing import TraceContext

__all__ = ["TraceContext", "current", "running"]

_current: ContextVar[TraceContext] = ContextVar("tasktrail_trace", default=TraceContext())  # noqa: B039 - immutable


def current() -> TraceContext:
    """That of the run this code is part of; empty outside of one."""
    return _current.get()


@contextlib.contextmanager
def running(context: TraceContext) -> Generator[None]:
    """While a run goes on: for this coroutine, and for all that it starts."""
    token = _current.set(context)
    try:
        with _in_opentelemetry(context):
            yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def _in_opentelemetry(context: TraceContext) -> Generator[None]:
    try:
        from opentelemetry import context as contexts  # noqa: PLC0415 - an adapter may do without
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415 - as above
    except ImportError:
        yield
        return
    token = contexts.attach(TraceContextTextMapPropagator().extract(context.carried()))
    try:
        yield
    finally:
        contexts.detach(token)
