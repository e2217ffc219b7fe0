"""The work's side: what an MCP server may report about the tasks it runs.

Guarantees: a server reports only on tasks it made; its steps are recorded as its own, never as the caller's, with how
the creator's authority stands at that moment, and the policy says whether work goes on, waits, or is cancelled; a late
report on a finished task changes nothing, is recorded, and the answer says so.

    view = await work.complete(messages.CompleteTask(task_ref=…, command_id=…, result={…}), channel)
"""

import msgspec

from tasktrail.events import decide
from tasktrail.events.authority import Authority, Standing, Trigger
from tasktrail.events.errors import AuthorityPaused, InvalidRequest, NothingWritten, TaskNotFound
from tasktrail.events.facts import Commitment
from tasktrail.events.subjects import entry_id
from tasktrail.events.task import Outcome
from tasktrail.projections.current import State
from tasktrail.services import messages
from tasktrail.services.access import answers
from tasktrail.services.access.callers import Channel, server_authority, service_authority
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.policy import Action, Policies
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.governance import NOT_GOVERNED, Governance
from tasktrail.services.ledger import Ledger, Recorded
from tasktrail.services.messages import WorkView
from tasktrail.services.states import States

LOST_CODE = -32603
"""JSON-RPC code of a task whose worker went away."""


class Work:
    """What MCP servers may do with the tasks they run."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        ledger: Ledger,
        states: States,
        payloads: Payloads,
        recorder: Recorder,
        governance: Governance,
        policies: Policies,
    ) -> None:
        self._ledger, self._states, self._payloads, self._recorder = ledger, states, payloads, recorder
        self._governance, self._policies = governance, policies

    async def report(self, said: messages.ReportStatus, channel: Channel) -> WorkView:
        """How far the work is; an unchanged text changes nothing and is not recorded."""
        state = await self._own(said.task_ref, channel, "report")
        message, blobs = await self._seal(state, said.command_id, "message", said.message)
        command = decide.ReportStatus(id=said.command_id, message=message, progress=said.progress, total=said.total)
        return await self._submit(state, command, channel, "report", blobs)

    async def ask(self, said: messages.RequestInput, channel: Channel) -> WorkView:
        """Ask the client for input; the keys must be new to the task."""
        state = await self._own(said.task_ref, channel, "ask")
        asks: list[decide.Ask] = []
        blobs: dict[str, bytes] = {}
        for key, ask in said.asks.items():
            if ask.method not in answers.METHODS:
                message = f"{ask.method!r} is no request for input; use one of {', '.join(sorted(answers.METHODS))}"
                raise InvalidRequest(message)
            request, more = await self._seal(state, said.command_id, f"request.{key}", msgspec.to_builtins(ask))
            blobs |= more
            asks.append(decide.Ask(key=key, method=ask.method, request=request))
        command = decide.RequestInput(id=said.command_id, asks=tuple(asks))
        return await self._submit(state, command, channel, "ask", blobs)

    async def collect(self, said: messages.CollectInput, channel: Channel) -> WorkView:
        """Whether to go on, and the answers so far: those only while the policy lets the work continue."""
        state = await self._own(said.task_ref, channel, "collect")
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        authority, _ = self._authority(state, channel, "collect")
        goes_on = self._policies.decide(Action.CONTINUE, authority, about=state.task).effect == "allow"
        return await self._view(state, answers=goes_on)

    async def complete(self, said: messages.CompleteTask, channel: Channel) -> WorkView:
        """The work's result."""
        state = await self._own(said.task_ref, channel, "complete")
        result, blobs = await self._seal(state, said.command_id, "result", said.result)
        command = decide.CompleteTask(id=said.command_id, result=result, is_error=said.is_error)
        return await self._submit(state, command, channel, "complete", blobs)

    async def fail(self, said: messages.FailTask, channel: Channel) -> WorkView:
        """The work's JSON-RPC error."""
        state = await self._own(said.task_ref, channel, "fail")
        error, blobs = await self._seal(state, said.command_id, "error", msgspec.to_builtins(said.error))
        command = decide.FailTask(id=said.command_id, error=error, code=said.error.code)
        return await self._end(state, command, channel, "fail", blobs)

    async def stop(self, said: messages.StopTask, channel: Channel) -> WorkView:
        """The work has stopped, as the task's cancellation asked."""
        state = await self._own(said.task_ref, channel, "stop")
        return await self._end(state, decide.StopTask(id=said.command_id), channel, "stop", {})

    async def lose(self, said: messages.LoseWorker, channel: Channel) -> WorkView:
        """The process doing the work is going away; the task ends as failed."""
        state = await self._own(said.task_ref, channel, "lose")
        error = messages.RpcError(code=LOST_CODE, message="the server running this task went away")
        sealed, blobs = await self._seal(state, said.command_id, "error", msgspec.to_builtins(error))
        command = decide.LoseWorker(id=said.command_id, cause=said.cause, error=sealed, code=LOST_CODE)
        return await self._end(state, command, channel, "lose", blobs)

    async def _own(self, ref: str, channel: Channel, action: str) -> State:
        """The task, if this server runs it.

        Raises:
            TaskNotFound: there is none, or another server runs it.
        """
        known = self._states.kept(ref)
        if known is not None and known.task.server == channel.server and action != "collect":
            return known  # whose it is never changes, and the Ledger sees to it that the state is the current one
        state = await (self._states.of(known.tenant, ref) if known else self._states.by_handle(ref))
        if state is not None and state.task.server == channel.server:
            return state
        tenant = state.tenant if state else "_"
        rule = Rule.OTHER_SERVER if state else Rule.UNKNOWN
        authority = server_authority(channel, tenant, action)
        await self._recorder.denied(authority, f"work/{action}", TaskNotFound.code, rule, ref, tenant)
        raise TaskNotFound

    async def _seal(
        self, state: State, command_id: str, name: str, value: object
    ) -> tuple[Commitment, dict[str, bytes]]:
        key = await self._payloads.vault.key(state.task_ref)
        return await self._payloads.seal(key, name, entry_id(state.task_ref, command_id), value)

    async def _submit(
        self, state: State, command: decide.TaskCommand, channel: Channel, action: str, blobs: dict[str, bytes]
    ) -> WorkView:
        """Go on with the work, if the policy lets it as the creator's authority stands now.

        Raises:
            AuthorityPaused: the work is to wait; that it does is on the trail, folded.
            NothingWritten: what governs is being read again.
        """
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        authority, standing = self._authority(state, channel, action)
        if standing is Standing.LAPSED:  # what is remembered may be behind: the creator may have come back elsewhere
            state = await self._states.of(state.tenant, state.task_ref) or state
            authority, standing = self._authority(state, channel, action)
        decided = self._policies.decide(Action.CONTINUE, authority, about=state.task)
        authority = msgspec.structs.replace(authority, decision=decided)
        if decided.effect == "allow" or not state.task.live:
            done = await self._ledger.submit(state.tenant, state.task_ref, command, authority, blobs)
            return await self._view(done.state, done)
        if self._policies.decide(Action.PAUSE, authority, about=state.task).effect == "allow":
            await self._recorder.denied(
                authority, f"work/{action}", AuthorityPaused.code, Rule.PAUSED, state.task_ref, state.tenant
            )
            message = f"the policy makes this work wait (the creator's authority: {standing.value}); report again later"
            raise AuthorityPaused(message)
        return await self._stopped(state, authority, standing, over=action == "complete")

    async def _stopped(self, state: State, authority: Authority, standing: Standing, *, over: bool) -> WorkView:
        """Cancel a task whose work may not go on. `over`: the work has come to its end by itself."""
        cause = f"authority_{standing.value}"
        enforced = msgspec.structs.replace(
            service_authority(Trigger.OPERATOR, state.tenant, "policy"),
            created_by=state.task.created_by,
            standing=standing,
            decision=authority.decision,
        )
        cancel = decide.CancelTask(id=f"policy:{cause}", cause=cause)
        done = await self._ledger.submit(state.tenant, state.task_ref, cancel, enforced)
        if over:
            stop = decide.StopTask(id=f"policy:{cause}:stopped")
            done = await self._ledger.submit(state.tenant, state.task_ref, stop, enforced)
        view = await self._view(done.state, answers=False)
        return msgspec.structs.replace(view, outcome=Outcome.REFUSED.value, reason=cause)

    async def _end(
        self, state: State, command: decide.TaskCommand, channel: Channel, action: str, blobs: dict[str, bytes]
    ) -> WorkView:
        """Take the end of the work: nobody's authority is needed to stop."""
        authority, _ = self._authority(state, channel, action)
        decided = decision(Rule.SERVER_RUNS_TASK, action, state.task.binding, channel.server)
        authority = msgspec.structs.replace(authority, decision=decided)
        done = await self._ledger.submit(state.tenant, state.task_ref, command, authority, blobs)
        return await self._view(done.state, done)

    def _authority(self, state: State, channel: Channel, action: str) -> tuple[Authority, Standing]:
        standing = self._governance.standing(state.task, self._ledger.now())
        authority = server_authority(channel, state.tenant, action, Trigger.WORKER)
        return msgspec.structs.replace(authority, created_by=state.task.created_by, standing=standing), standing

    async def _view(self, state: State, done: Recorded | None = None, *, answers: bool = True) -> WorkView:
        task = state.task
        given = {
            key: await self._payloads.open(state, one.response)
            for key, one in task.inputs.items()
            if answers and one.response is not None and not task.status.terminal
        }
        return WorkView(
            task_ref=state.task_ref,
            status=task.status,
            live=task.live and self._ledger.now() < task.expires_at_ms,
            cancel_requested=task.cancel_requested_at_ms is not None,
            seq=task.seq,
            answers=given,
            outcome=str(done.outcome) if done else Outcome.ACCEPTED.value,
            reason=done.reason if done else "",
        )
