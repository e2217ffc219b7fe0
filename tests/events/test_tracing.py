"""W3C trace context of a task's work. Source: W3C Trace Context, sections 3.2 and 3.3; issue "Adapters"."""

import pytest

from tasktrail.events.tracing import STATE_MAX, TraceContext, run_span, runs_named, stated

REF, OTHER = "a" * 32, "b" * 32
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.requirement("L6", "O4")
def test_a_run_goes_on_with_the_trace_of_its_request_under_a_span_of_its_own() -> None:
    """Section 3.2: the trace id stays, the parent id is the sender's span; section 3.3: ours comes first."""
    context = TraceContext.of_run(REF, PARENT, "congo=t61, tasktrail=00f067aa0ba902b7,rojo=1")
    assert context.traceparent == f"00-{TRACE}-{run_span(REF)}-01"
    assert context.tracestate == f"tasktrail={run_span(REF)},congo=t61,rojo=1"
    assert context == TraceContext.of_run(REF, PARENT, "congo=t61,rojo=1")
    assert context.carried() == {"traceparent": context.traceparent, "tracestate": context.tracestate}
    assert run_span(REF) != run_span(OTHER)
    assert REF not in "".join(context)


@pytest.mark.requirement("L6")
@pytest.mark.parametrize("said", ["", "00-x", PARENT.upper(), f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01"])
def test_a_run_without_a_trace_begins_one_of_its_own(said: str) -> None:
    """Section 4.3: an invalid traceparent is one that is not there, and its tracestate counts for nothing."""
    context = TraceContext.of_run(REF, said, "congo=t61")
    _, trace, span, flags = context.traceparent.split("-")
    assert (len(trace), span, flags) == (32, run_span(REF), "00")
    assert context.tracestate == f"tasktrail={span}"
    assert trace == TraceContext.of_run(REF).traceparent.split("-")[1]
    assert trace != TraceContext.of_run(OTHER).traceparent.split("-")[1]


@pytest.mark.requirement("L6")
def test_a_request_names_its_run_also_where_others_put_spans_between() -> None:
    """Section 3.3: a member of the state stays while the parent id changes from hop to hop."""
    sent = TraceContext.of_run(REF, PARENT)
    assert runs_named(*sent) == (run_span(REF),)
    assert runs_named(PARENT, sent.tracestate) == (run_span(REF), SPAN)
    assert runs_named(PARENT, "") == (SPAN,)
    assert runs_named("00-x", sent.tracestate) == ()
    assert runs_named(PARENT, "tasktrail=nothing") == (SPAN,)


@pytest.mark.requirement("L6")
def test_of_a_state_whole_members_travel() -> None:
    """Section 3.3.1.5: at least 512 characters; nothing of a form that is none."""
    long = ",".join(f"k{number}={'v' * 100}" for number in range(9))
    assert stated(long) == ",".join(long.split(",")[:4])
    assert len(stated(long)) <= STATE_MAX
    assert stated("a=1,,B=2,c=\n, d=4 ,nothing") == "a=1,d=4"
