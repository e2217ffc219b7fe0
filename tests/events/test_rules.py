"""The rules of a task one by one, given, when, then. Source: design section 5, SEP-2663, features L2 L7 L8 L10."""

import pytest

from tasktrail.events.commands import (
    Answer,
    Ask,
    CancelTask,
    CompleteTask,
    CreateTask,
    ExpireTask,
    FailTask,
    LoseWorker,
    ReportStatus,
    RequestInput,
    RespondToInput,
    StopTask,
)
from tasktrail.events.decide import INPUTS_MAX
from tasktrail.events.facts import (
    CancelRequested,
    CommandRefused,
    InputIgnored,
    InputRequested,
    InputResponded,
    Status,
    StatusReported,
    TaskCancelled,
    TaskCreated,
    TaskExpired,
    TaskFailed,
    TaskResumed,
    WorkerLost,
)
from tasktrail.events.task import Outcome
from tasktrail.testing.scenario import (
    ANA,
    ELICITATION,
    LATER_MS,
    NOW_MS,
    TTL_MS,
    answered,
    asked,
    cancel_requested,
    cancelled,
    completed,
    create,
    created,
    expired,
    given,
    resumed,
    sealed,
)

ENDS_MS = NOW_MS + TTL_MS
DIGEST = "d" * 64


def ask(*keys: str) -> RequestInput:
    """Requests under these keys."""
    return RequestInput(
        id="ask", asks=tuple(Ask(key=key, method=ELICITATION, request=sealed(f"request.{key}")) for key in keys)
    )


def answer(*answers: Answer) -> RespondToInput:
    return RespondToInput(id="answer", answers=answers)


def accept(key: str, text: str = "") -> Answer:
    return Answer(key=key, action="accept", response=sealed(f"response.{key}", text))


def responded(key: str, action: str = "accept", text: str = "") -> InputResponded:
    response = sealed(f"response.{key}", text)
    return InputResponded(at_ms=LATER_MS, key=key, method=ELICITATION, action=action, response=response)


def ignored(reason: str, key: str = "", key_sha256: str = "") -> InputIgnored:
    return InputIgnored(at_ms=LATER_MS, reason=reason, key=key, key_sha256=key_sha256)


@pytest.mark.requirement("L1")
def test_a_creation_holds_what_it_was_made_of_and_ends_after_its_granted_time() -> None:
    """Feature L1: status, TTL, timestamps, poll guidance. Granted counts, not requested (P1)."""
    given().when(create(requested_ttl_ms=10**9, granted_ttl_ms=500, poll_interval_ms=77)).then_task(
        Status.WORKING,
        {
            "binding": ANA,
            "created_at_ms": LATER_MS,
            "last_updated_at_ms": LATER_MS,
            "ttl_ms": 500,
            "expires_at_ms": LATER_MS + 500,
            "poll_interval_ms": 77,
            "handle": sealed("handle"),
            "live": True,
        },
    )


@pytest.mark.requirement("L1")
def test_every_field_of_a_creation_is_in_its_event() -> None:
    """Nothing that was decided on is lost between the command and the trail."""
    command_only = {"id"}
    fields = set(CreateTask.__struct_fields__) - command_only
    assert fields == set(TaskCreated.__struct_fields__)
    made = create(at_ms=LATER_MS, client_extensions=("x",), client_features=("sampling",), tool_sha256="t" * 64)
    (event,) = given().when(made).events
    assert {name: getattr(event, name) for name in fields} == {name: getattr(made, name) for name in fields}


@pytest.mark.requirement("L7")
def test_answers_in_two_parts_resume_the_task_with_the_last() -> None:
    """SEP-2663, partial input responses: only what is outstanding is shown meanwhile."""
    first = given(created(), asked("a"), asked("b")).when(answer(accept("b")))
    first.then(responded("b")).then_task(Status.INPUT_REQUIRED)
    assert first.task is not None
    assert list(first.task.outstanding) == ["a"]
    given(*first.before.history, *first.events).when(answer(accept("a"))).then(
        responded("a"), TaskResumed(at_ms=LATER_MS)
    ).then_task(Status.WORKING, {"outstanding": {}})


@pytest.mark.requirement("L7")
def test_all_answers_at_once_are_one_command() -> None:
    """Design section 7: one command, one entry."""
    given(created(), asked("a"), asked("b")).when(answer(accept("a"), accept("b"))).then(
        responded("a"), responded("b"), TaskResumed(at_ms=LATER_MS)
    )


@pytest.mark.requirement("L7")
def test_one_invalid_answer_refuses_all_of_them() -> None:
    """Design section 5: one invalid answer among several refuses them all and is recorded."""
    refused = given(created(), asked("a"), asked("b")).when(
        answer(accept("a"), Answer(key="b", fault="`x` is missing"))
    )
    refused.then_refused("invalid_answer").then(
        CommandRefused(
            at_ms=LATER_MS, command="RespondToInput", status="input_required", reason="invalid_answer", key="b"
        )
    )


@pytest.mark.requirement("L7")
def test_unknown_repeated_and_foreign_answers_change_nothing_and_are_recorded() -> None:
    """Feature L7; a key that was never issued is kept as its digest only (it is the client's text)."""
    scenario = given(created(), asked("a"), answered("a"), resumed()).when(
        answer(accept("a", "again"), Answer(key_sha256=DIGEST))
    )
    scenario.then(ignored("already_answered", key="a"), ignored("never_asked", key_sha256=DIGEST))
    assert scenario.outcome is Outcome.IGNORED
    assert scenario.task == scenario.before.task


@pytest.mark.requirement("L7")
def test_the_first_of_two_answers_to_one_request_counts() -> None:
    """Feature L7: repeated answers change nothing."""
    given(created(), asked("a"), asked("b")).when(answer(accept("a", "one"), accept("a", "two"))).then(
        responded("a", text="one"), ignored("already_answered", key="a")
    )


@pytest.mark.requirement("L7")
def test_good_and_ignored_answers_mix() -> None:
    """Partial answers are taken though others are not known."""
    given(created(), asked("a")).when(answer(Answer(key_sha256=DIGEST), accept("a"))).then(
        ignored("never_asked", key_sha256=DIGEST), responded("a"), TaskResumed(at_ms=LATER_MS)
    ).then_task(Status.WORKING)


@pytest.mark.requirement("L7")
def test_a_fault_in_an_answer_to_what_is_not_outstanding_is_no_refusal() -> None:
    """It changes nothing anyway."""
    given(created(), asked("a"), answered("a"), resumed()).when(answer(Answer(key="a", fault="wrong"))).then(
        ignored("already_answered", key="a")
    )


@pytest.mark.requirement("L7")
@pytest.mark.parametrize("action", ["accept", "decline", "cancel", "result"])
def test_what_the_client_said_is_recorded_as_it_said_it(action: str) -> None:
    """Design section 5: an accept is what the client said; decline and cancel answer the request too."""
    said = Answer(key="a", action=action, response=sealed("response.a"))
    given(created(), asked("a")).when(answer(said)).then(responded("a", action), TaskResumed(at_ms=LATER_MS))


@pytest.mark.requirement("L7")
@pytest.mark.parametrize("keys", [("a",), ("b", "a"), ("c", "c")])
def test_a_key_is_used_once_in_a_tasks_life_and_all_of_a_command_or_none_is_asked(keys: tuple[str, ...]) -> None:
    """Design section 5: input keys are unique over a task's life, answered ones too."""
    history = (created(), asked("a"), answered("a"), resumed())
    refused = given(*history).when(ask(*keys)).then_refused("key_used")
    (event,) = refused.events
    assert isinstance(event, CommandRefused)
    assert event.key == keys[-1]


@pytest.mark.requirement("L7")
def test_several_requests_at_once_are_asked_in_order() -> None:
    """One command, one entry."""
    scenario = given(created()).when(ask("b", "a"))
    scenario.then(
        InputRequested(at_ms=LATER_MS, key="b", method=ELICITATION, request=sealed("request.b")),
        InputRequested(at_ms=LATER_MS, key="a", method=ELICITATION, request=sealed("request.a")),
    ).then_task(Status.INPUT_REQUIRED)
    assert scenario.task is not None
    assert list(scenario.task.outstanding) == ["b", "a"]


@pytest.mark.requirement("L7")
def test_a_task_asks_a_bounded_number_of_times() -> None:
    """Every loop has a bound (style 7)."""
    history = [asked(f"k{number}") for number in range(INPUTS_MAX - 1)]
    given(created(), *history).when(ask("x", "y")).then_refused("too_many_inputs")
    given(created(), *history).when(ask("x")).then_task(Status.INPUT_REQUIRED)


@pytest.mark.requirement("L2")
def test_a_new_status_text_moves_last_updated_and_the_same_text_is_not_recorded() -> None:
    """Design section 5: `StatusReported` with a new text moves `lastUpdatedAt`; polls never do."""
    first = given(created()).when(ReportStatus(id="r", message=sealed("message", "one"), progress=1, total=4))
    first.then(StatusReported(at_ms=LATER_MS, message=sealed("message", "one"), progress=1, total=4))
    first.then_task(Status.WORKING, {"last_updated_at_ms": LATER_MS, "message": sealed("message", "one")})
    again = given(created(), *first.events)
    again.when(ReportStatus(id="r2", message=sealed("message", "one"), progress=2)).then_nothing()
    again.when(ReportStatus(id="r3")).then_nothing()
    again.when(ReportStatus(id="r4", message=sealed("message", "two"), at_ms=LATER_MS + 9)).then_task(
        Status.WORKING, {"last_updated_at_ms": LATER_MS + 9}
    )


@pytest.mark.requirement("L2")
def test_a_status_text_does_not_outlive_the_work() -> None:
    """What a finished task says is its result or error."""
    said = StatusReported(at_ms=NOW_MS + 1, message=sealed("message", "half"))
    for ending in (CompleteTask(id="e", result=sealed("result")), FailTask(id="e", error=sealed("error"), code=1)):
        done = given(created(), said).when(ending)
        assert done.task is not None
        assert done.task.message is None


@pytest.mark.requirement("L8")
def test_cancel_is_two_facts() -> None:
    """Feature L8: requested, and what became of it; the request alone is not shown as a change."""
    wished = given(created(), asked("a")).when(CancelTask(id="c")).then(CancelRequested(at_ms=LATER_MS))
    wished.then_task(
        Status.INPUT_REQUIRED, {"last_updated_at_ms": asked("a").at_ms, "cancel_requested_at_ms": LATER_MS}
    )
    stopped = given(*wished.before.history, *wished.events).when(StopTask(id="s", at_ms=LATER_MS + 5))
    stopped.then(TaskCancelled(at_ms=LATER_MS + 5, reason="requested"))
    stopped.then_task(Status.CANCELLED, {"last_updated_at_ms": LATER_MS + 5, "live": False})


@pytest.mark.requirement("L8")
@pytest.mark.parametrize("reason", ["requested", "unconfirmed"])
def test_how_a_cancellation_ended_is_recorded(reason: str) -> None:
    """Stopped by the work, or by nobody in time."""
    given(created(), cancel_requested()).when(StopTask(id="s", reason=reason)).then(
        TaskCancelled(at_ms=LATER_MS, reason=reason)
    )


@pytest.mark.requirement("L8")
def test_work_that_finishes_before_it_can_be_stopped_is_finished() -> None:
    """Feature L8: what became of the request is a fact of its own."""
    given(created(), cancel_requested()).when(CompleteTask(id="r", result=sealed("result"))).then_task(Status.COMPLETED)
    given(created(), cancel_requested()).when(FailTask(id="r", error=sealed("error"), code=-1)).then_task(Status.FAILED)


@pytest.mark.requirement("L8")
def test_a_finished_task_stays_finished_whatever_comes_late() -> None:
    """Feature L8; the late report is evidence and is recorded."""
    history = (created(), cancel_requested(), cancelled())
    late = given(*history).when(CompleteTask(id="r", result=sealed("result"))).then_refused("terminal")
    assert late.task is not None
    assert late.task.result is None


@pytest.mark.requirement("L10")
@pytest.mark.parametrize("history", [(created(), asked("a")), (created(), asked("a"), cancel_requested())])
def test_a_task_parked_on_input_takes_an_answer_until_its_last_millisecond(history: tuple[TaskCreated, ...]) -> None:
    """Feature L10: it lives as long as its granted TTL, not less, and not more."""
    said = RespondToInput(id="a", answers=(accept("a"),), at_ms=ENDS_MS - 1)
    given(*history).when(said).then_task(Status.WORKING)
    said = RespondToInput(id="a", answers=(accept("a"),), at_ms=ENDS_MS)
    given(*history).when(said).then_refused("ttl_elapsed")


@pytest.mark.requirement("L1", "L10")
def test_the_time_to_live_ends_a_live_task_once_and_not_before() -> None:
    """Design section 5: TTL elapsing on a live task is `TaskCancelled{ttl}`; `TaskExpired` is not a status."""
    parked = given(created(), asked("a"))
    parked.when(ExpireTask(id="e", at_ms=ENDS_MS - 1)).then_refused("not_due")
    over = parked.when(ExpireTask(id="e", at_ms=ENDS_MS))
    over.then(TaskCancelled(at_ms=ENDS_MS, reason="ttl"), TaskExpired(at_ms=ENDS_MS))
    over.then_task(Status.CANCELLED, {"expired_at_ms": ENDS_MS, "last_updated_at_ms": ENDS_MS, "live": False})
    given(*parked.history, *over.events).when(ExpireTask(id="e2", at_ms=ENDS_MS + 1)).then_nothing()


@pytest.mark.requirement("L1")
def test_expiry_leaves_the_status_of_a_finished_task_as_it_is() -> None:
    """Design section 5: `TaskExpired` ends access and may follow a terminal status."""
    given(created(), completed()).when(ExpireTask(id="e", at_ms=ENDS_MS)).then(TaskExpired(at_ms=ENDS_MS)).then_task(
        Status.COMPLETED, {"expired_at_ms": ENDS_MS, "last_updated_at_ms": completed().at_ms}
    )
    given(created(), completed(), expired()).when(CancelTask(id="c")).then_refused("expired")


@pytest.mark.requirement("L2")
@pytest.mark.parametrize("cause", ["shutdown", "lease"])
def test_a_lost_worker_ends_the_task_and_says_why(cause: str) -> None:
    """Design section 5: `WorkerLost`; never silently (L9)."""
    lost = LoseWorker(id="l", cause=cause, error=sealed("error"), code=-32603)
    given(created()).when(lost).then(
        WorkerLost(at_ms=LATER_MS, cause=cause), TaskFailed(at_ms=LATER_MS, error=sealed("error"), code=-32603)
    ).then_task(Status.FAILED)


@pytest.mark.requirement("L2")
def test_a_tools_own_error_is_a_completed_task() -> None:
    """Design section 5: a tool result with `isError` is `completed`; how a wire shows it is the wire's matter."""
    given(created()).when(CompleteTask(id="r", result=sealed("result"), is_error=True)).then_task(
        Status.COMPLETED, {"is_error": True, "error": None}
    )
