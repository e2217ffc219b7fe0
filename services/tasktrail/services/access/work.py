"""The work's side: what an MCP server may report about the tasks it runs.

Guarantees: a server reports only on tasks it made; its steps are recorded as its own, never as the caller's, with how
the creator's authority stands at that moment, and the policy says whether work goes on, waits, or is cancelled; a late
report on a finished task changes nothing, is recorded, and the answer says so. Where a worker with a lease runs a task,
nobody else's report counts; work that lost its worker is given to one that asks for it, to no two.

    view = await work.complete(messages.CompleteTask(task_ref=…, command_id=…, result={…}), channel)
"""

from collections.abc import Callable

import msgspec

from tasktrail.events import commands
from tasktrail.events.authority import Authority, Standing, Trigger
from tasktrail.events.entry import Entry
from tasktrail.events.errors import AuthorityPaused, InvalidRequest, NothingWritten, RateLimited, TaskNotFound
from tasktrail.events.facts import Commitment, TaskCreated
from tasktrail.events.subjects import entry_id
from tasktrail.events.task import Outcome
from tasktrail.projections.current import State
from tasktrail.services import messages
from tasktrail.services.access import answers
from tasktrail.services.access.callers import Channel, server_authority, service_authority
from tasktrail.services.access.losing import Losing
from tasktrail.services.access.payloads import Payloads
from tasktrail.services.access.policy import Action, Policies
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.counting import Counting
from tasktrail.services.governance import NOT_GOVERNED, Governance
from tasktrail.services.leases import Leases
from tasktrail.services.ledger import Ledger, Recorded
from tasktrail.services.messages import WorkView
from tasktrail.services.states import States
from tasktrail.services.work_queue import Offer, WorkQueue

OFFERS_MAX = 16
"""How many pieces of waiting work are looked at for one that asks."""
ASKING_MAX = 8
"""How many processes of one MCP server wait for work at a time; more are answered at once."""
OTHERS_S, PAUSED_S, RETRY_S = 2.0, 5.0, 1.0
"""After how long work is offered again: of a tool that the last one asking does not have; that policy makes wait; that
something went wrong with."""


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
        losing: Losing,
        leases: Leases,
        queue: WorkQueue,
    ) -> None:
        self._asking: Counting[str] = Counting()
        self._ledger, self._states, self._payloads, self._recorder = ledger, states, payloads, recorder
        self._governance, self._policies = governance, policies
        self._losing, self._leases, self._queue = losing, leases, queue
        self.on_defined: Callable[[Channel, str, str], None] = lambda _channel, _tool, _sha256: None
        """Told how a tool is defined now (`Definitions.seen`)."""

    async def report(self, said: messages.ReportStatus, channel: Channel) -> WorkView:
        """How far the work is; an unchanged text changes nothing and is not recorded."""
        state = await self._own(said.task_ref, channel, "report")
        message, blobs = await self._seal(state, said.command_id, "message", said.message)
        command = commands.ReportStatus(
            id=said.command_id,
            message=message,
            progress=said.progress,
            total=said.total,
            worker=said.worker,
            attempt=said.attempt,
        )
        return await self._said(state, command, said, channel, "report", blobs)

    async def ask(self, said: messages.RequestInput, channel: Channel) -> WorkView:
        """Ask the client for input; the keys must be new to the task."""
        state = await self._own(said.task_ref, channel, "ask")
        asks: list[commands.Ask] = []
        blobs: dict[str, bytes] = {}
        for key, ask in said.asks.items():
            if ask.method not in answers.METHODS:
                message = f"{ask.method!r} is no request for input; use one of {', '.join(sorted(answers.METHODS))}"
                raise InvalidRequest(message)
            request, more = await self._seal(state, said.command_id, f"request.{key}", msgspec.to_builtins(ask))
            blobs |= more
            asks.append(commands.Ask(key=key, method=ask.method, request=request))
        command = commands.RequestInput(id=said.command_id, asks=tuple(asks), worker=said.worker, attempt=said.attempt)
        return await self._said(state, command, said, channel, "ask", blobs)

    async def collect(self, said: messages.CollectInput, channel: Channel) -> WorkView:
        """Whether to go on, and the answers so far: those only while the policy lets the work continue."""
        state = await self._own(said.task_ref, channel, "collect")
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        authority, _ = self._authority(state, channel, "collect")
        goes_on = self._policies.decide(Action.CONTINUE, authority, about=state.task).effect == "allow"
        return await self._view(state, said, answers=goes_on)

    async def complete(self, said: messages.CompleteTask, channel: Channel) -> WorkView:
        """The work's result."""
        state = await self._own(said.task_ref, channel, "complete")
        result, blobs = await self._seal(state, said.command_id, "result", said.result)
        command = commands.CompleteTask(
            id=said.command_id, result=result, is_error=said.is_error, worker=said.worker, attempt=said.attempt
        )
        return await self._said(state, command, said, channel, "complete", blobs)

    async def fail(self, said: messages.FailTask, channel: Channel) -> WorkView:
        """The work's JSON-RPC error."""
        state = await self._own(said.task_ref, channel, "fail")
        error, blobs = await self._seal(state, said.command_id, "error", msgspec.to_builtins(said.error))
        command = commands.FailTask(
            id=said.command_id, error=error, code=said.error.code, worker=said.worker, attempt=said.attempt
        )
        return await self._end(state, command, said, channel, "fail", blobs)

    async def stop(self, said: messages.StopTask, channel: Channel) -> WorkView:
        """The work has stopped, as the task's cancellation asked."""
        state = await self._own(said.task_ref, channel, "stop")
        command = commands.StopTask(id=said.command_id, worker=said.worker, attempt=said.attempt)
        return await self._end(state, command, said, channel, "stop", {})

    async def lose(self, said: messages.LoseWorker, channel: Channel) -> WorkView:
        """The process doing the work is going away; the task ends as failed, or waits to be started again."""
        state = await self._own(said.task_ref, channel, "lose")
        authority = self._ending(state, channel, "lose")
        done = await self._losing.lose(
            state, said.command_id, said.cause, authority, worker=said.worker, attempt=said.attempt
        )
        return await self._view(done.state, said, done)

    async def renew(self, said: messages.RenewLease, channel: Channel) -> messages.Lease:
        """A worker is alive: its tasks stay its own for another lease. Not on the trail, unless it is refused."""
        try:
            await self._leases.renew(channel.server, said.worker)
        except RateLimited:
            by = server_authority(channel, "_", "renew")
            await self._recorder.denied(by, "work/renew", RateLimited.code, Rule.RATE_LIMITED, "", by.tenant)
            raise
        for tool, sha256 in said.tools.items():
            self.on_defined(channel, tool, sha256)
        return messages.Lease(lease_ms=self._leases.lease_ms)

    async def take(self, said: messages.TakeWork, channel: Channel) -> messages.Taken:
        """Work that lost its worker, to be started again; what policy makes wait is left in the queue."""
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        again = await self._unanswered(said, channel)
        if again is not None:
            return messages.Taken(order=again)
        wait_s = said.wait_ms / 1000 if self._asking.of(channel.server) < ASKING_MAX else 0.0
        for _ in range(OFFERS_MAX):
            with self._asking.one(channel.server):
                offer = await self._queue.next(channel.server, wait_s)
            if offer is None:
                break
            wait_s = 0.0
            try:
                state = await self._taken(offer, said, channel)
            except BaseException:
                await offer.again(after_s=RETRY_S)
                raise
            if state is not None:
                return messages.Taken(order=await self._order(state))
        return messages.Taken()

    async def _unanswered(self, said: messages.TakeWork, channel: Channel) -> messages.Order | None:
        """The order of a task that this worker took without ever hearing of it: the answer to it was lost."""
        for held in self._leases.tasks_of(channel.server, said.worker):
            if held.attempt == 1 or said.taken.get(held.task_ref) == held.attempt:
                continue
            state = await self._states.of(held.tenant, held.task_ref)
            if state is None or not state.task.live or state.task.worker != said.worker:
                continue
            if said.taken.get(held.task_ref) != state.task.attempt and state.task.tool in said.tools:
                authority, _ = self._authority(state, channel, "take")
                if self._policies.decide(Action.CONTINUE, authority, about=state.task).effect == "allow":
                    return await self._order(state)
        return None

    async def _taken(self, offer: Offer, said: messages.TakeWork, channel: Channel) -> State | None:
        """The task once it is this worker's; None when it is not to be had, or not now."""
        work = offer.work
        state = await self._states.of(work.tenant, work.task_ref)
        if state is None or not state.task.waits_for_worker or state.task.server != channel.server:
            await offer.settle()
            return None
        if state.task.tool not in said.tools:
            await offer.again(after_s=OTHERS_S)
            return None
        task = state.task
        command = commands.TakeWork(
            id=f"take:{task.attempt + 1}:{said.worker}", worker=said.worker, tool_sha256=said.tools[task.tool]
        )
        try:
            done = await self._submit(state, command, channel, "take", {})
        except AuthorityPaused:
            await offer.again(after_s=PAUSED_S)
            return None
        await offer.settle()
        self._leases.observe(done.state)
        mine = done.state.task.worker == said.worker and done.state.task.live
        return done.state if mine else None

    async def _order(self, state: State) -> messages.Order:
        """What a worker needs to start the work of a task, from its entries."""
        history = await self._states.history(state)
        sealed = {
            one.sha256: entry.sealed[one.name]
            for entry in history
            for one in _commitments(entry)
            if one.name in entry.sealed
        }
        state, task = msgspec.structs.replace(state, sealed=sealed), state.task
        created = next(event for event in history[0].events if isinstance(event, TaskCreated))
        creating = history[0].authority.request
        asked: list[messages.Asked] = []
        for key, one in task.inputs.items():
            request: messages.InputAsk = msgspec.convert(
                await self._payloads.open(state, one.request), messages.InputAsk
            )
            answer = await self._payloads.open(state, one.response) if one.response is not None else None
            asked.append(
                messages.Asked(
                    key=key,
                    method=one.method,
                    params=request.params,
                    answered=one.response is not None,
                    answer=answer,
                )
            )
        return messages.Order(
            task_ref=state.task_ref,
            tool=task.tool,
            attempt=task.attempt,
            arguments=await self._payloads.open(state, task.arguments) if task.arguments is not None else None,
            client_extensions=created.client_extensions,
            client_features=created.client_features,
            wire=created.wire,
            protocol_version=created.protocol_version,
            asked=tuple(asked),
            created_at_ms=task.created_at_ms,
            ttl_ms=task.ttl_ms,
            poll_interval_ms=task.poll_interval_ms,
            traceparent=creating.traceparent if creating is not None else "",
        )

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

    async def _said(  # noqa: PLR0913, PLR0917 - a step and what it is of
        self,
        state: State,
        command: commands.WorkCommand,
        said: messages.OfWork,
        channel: Channel,
        action: str,
        blobs: dict[str, bytes],
    ) -> WorkView:
        """Go on with the work, if the policy lets it; what a lost worker says is refused before that is asked."""
        done = await self._submit(state, command, channel, action, blobs)
        if not isinstance(done, Recorded):
            view = await self._view(done.state, said, answers=False)
            return msgspec.structs.replace(view, outcome=Outcome.REFUSED.value, reason=done.cause)
        return await self._view(done.state, said, done)

    async def _submit(
        self, state: State, command: commands.TaskCommand, channel: Channel, action: str, blobs: dict[str, bytes]
    ) -> "Recorded | _Stopped":
        """Go on with the work, if the policy lets it as the creator's authority stands now.

        Raises:
            AuthorityPaused: the work is to wait; that it does is on the trail, folded.
            NothingWritten: what governs is being read again.
        """
        if not self._governance.ready:
            raise NothingWritten(NOT_GOVERNED)
        authority, standing = self._authority(state, channel, action)
        if standing is Standing.LAPSED or _is_lost(command, state):
            # What is remembered may be behind: the creator may have come back elsewhere, or the work been taken.
            state = await self._states.of(state.tenant, state.task_ref) or state
            authority, standing = self._authority(state, channel, action)
        decided = self._policies.decide(Action.CONTINUE, authority, about=state.task)
        authority = msgspec.structs.replace(authority, decision=decided)
        if decided.effect == "allow" or not state.task.live or _is_lost(command, state):
            return await self._ledger.submit(state.tenant, state.task_ref, command, authority, blobs)
        if self._policies.decide(Action.PAUSE, authority, about=state.task).effect == "allow":
            await self._recorder.denied(
                authority, f"work/{action}", AuthorityPaused.code, Rule.PAUSED, state.task_ref, state.tenant
            )
            message = f"the policy makes this work wait (the creator's authority: {standing.value}); report again later"
            raise AuthorityPaused(message)
        return await self._stopped(state, authority, standing, over=action == "complete")

    async def _stopped(self, state: State, authority: Authority, standing: Standing, *, over: bool) -> "_Stopped":
        """Cancel a task whose work may not go on. `over`: the work has come to its end by itself."""
        cause = f"authority_{standing.value}"
        enforced = msgspec.structs.replace(
            service_authority(Trigger.OPERATOR, state.tenant, "policy"),
            created_by=state.task.created_by,
            standing=standing,
            decision=authority.decision,
        )
        cancel = commands.CancelTask(id=f"policy:{cause}", cause=cause)
        done = await self._ledger.submit(state.tenant, state.task_ref, cancel, enforced)
        if over:
            stop = commands.StopTask(id=f"policy:{cause}:stopped")
            done = await self._ledger.submit(state.tenant, state.task_ref, stop, enforced)
        return _Stopped(state=done.state, cause=cause)

    async def _end(  # noqa: PLR0913, PLR0917 - a step and what it is of
        self,
        state: State,
        command: commands.WorkCommand,
        said: messages.OfWork,
        channel: Channel,
        action: str,
        blobs: dict[str, bytes],
    ) -> WorkView:
        """Take the end of the work."""
        authority = self._ending(state, channel, action)
        done = await self._ledger.submit(state.tenant, state.task_ref, command, authority, blobs)
        return await self._view(done.state, said, done)

    def _ending(self, state: State, channel: Channel, action: str) -> Authority:
        """Nobody's authority is needed to stop."""
        authority, _ = self._authority(state, channel, action)
        decided = decision(Rule.SERVER_RUNS_TASK, action, state.task.binding, channel.server)
        return msgspec.structs.replace(authority, decision=decided)

    def _authority(self, state: State, channel: Channel, action: str) -> tuple[Authority, Standing]:
        standing = self._governance.standing(state.task, self._ledger.now())
        authority = server_authority(channel, state.tenant, action, Trigger.WORKER)
        return msgspec.structs.replace(authority, created_by=state.task.created_by, standing=standing), standing

    async def _view(
        self, state: State, said: messages.OfWork, done: Recorded | None = None, *, answers: bool = True
    ) -> WorkView:
        task = state.task
        lost = task.lost_to(said.worker, said.attempt)
        given = {
            key: await self._payloads.open(state, one.response)
            for key, one in task.inputs.items()
            if answers and not lost and one.response is not None and not task.status.terminal
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
            lost=lost,
        )


class _Stopped(msgspec.Struct, frozen=True, kw_only=True):
    """A task whose work may not go on, and why."""

    state: State
    cause: str


def _is_lost(command: commands.TaskCommand, state: State) -> bool:
    """Whether a worker says this that the task is lost to: it is refused, whatever the policy says."""
    return isinstance(command, commands.WorkCommand) and state.task.lost_to(command.worker or "", command.attempt)


def _commitments(entry: Entry) -> tuple[Commitment, ...]:
    values = (getattr(event, field) for event in entry.events for field in event.__struct_fields__)
    return tuple(value for value in values if isinstance(value, Commitment))
