"""The gate: every request of a caller or of an MCP server passes here, and nothing else reaches the Ledger.

Guarantees: a handle opens its task only for the identity context that made it, checked at every call; unknown, foreign,
expired and malformed handles take the same steps and get the same answer, and the trail says which it was; what is
shown or changed is on the trail first.

    view = await gate.get(messages.GetTask(caller=…, call=…, task_id=…), Channel(server="reports", in_process=True))
"""

import hashlib
import json

import msgspec

from tasktrail.events import decide
from tasktrail.events.authority import Authority, Binding, BindingCheck, differences, identity
from tasktrail.events.errors import InvalidAnswer, InvalidRequest, NotAuthorised, TaskNotFound
from tasktrail.events.facts import Commitment, SubscriptionClosed, SubscriptionOpened, TaskSupport
from tasktrail.events.subjects import entry_id, is_task_id
from tasktrail.events.task import Outcome, Task
from tasktrail.projections.current import State
from tasktrail.services import messages
from tasktrail.services.access import answers
from tasktrail.services.access.callers import Channel, caller_authority
from tasktrail.services.access.payloads import Payloads, encoded
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule, decision
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Ledger
from tasktrail.services.messages import Done, Granted, InputAsk, RpcError, TaskView
from tasktrail.services.settings import Settings
from tasktrail.services.states import States

ANSWERS_MAX = 64
POLL_INTERVAL_LEAST_MS, POLL_INTERVAL_MOST_MS = 50, 600_000


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A task that a handle opened, for whom, and when."""

    state: State
    authority: Authority
    task_id: str


class Gate:
    """What callers of an MCP server may do with tasks."""

    def __init__(  # noqa: PLR0913, PLR0917 - its collaborators
        self,
        ledger: Ledger,
        states: States,
        keyring: Keyring,
        payloads: Payloads,
        recorder: Recorder,
        settings: Settings,
    ) -> None:
        self._ledger, self._states, self._keyring = ledger, states, keyring
        self._payloads, self._recorder, self._settings = payloads, recorder, settings

    async def create(self, said: messages.CreateTask, channel: Channel) -> TaskView:
        """Make a task; when this returns, every replica resolves its handle (SEP-2663, Task Creation)."""
        if said.task_support is TaskSupport.FORBIDDEN:
            message = f"tool {said.tool!r} is forbidden as a task; call it synchronously"
            raise InvalidRequest(message)
        authority = await self._admit(said.caller, said.call, channel)
        binding = identity(authority)
        handle = self._keyring.task_id(channel.server, *_members(binding), said.command_id)
        ref = self._keyring.ref(handle)
        scope = entry_id(ref, said.command_id)
        if said.arguments is not None:
            encoded("arguments", said.arguments, self._settings.payload_max_bytes)
        key = await self._payloads.vault.make(ref)
        sealed_handle, blobs = await self._payloads.seal(key, "handle", scope, handle)
        arguments: Commitment | None = None
        if said.arguments is not None:
            arguments, more = await self._payloads.seal(key, "arguments", scope, said.arguments)
            blobs |= more
        command = decide.CreateTask(
            id=said.command_id,
            binding=binding,
            server=channel.server,
            tool=said.tool,
            tool_sha256=said.tool_sha256,
            task_support=said.task_support,
            wire=said.call.wire,
            protocol_version=said.call.protocol_version,
            client_extensions=said.client_extensions,
            client_features=said.client_features,
            requested_ttl_ms=said.ttl_ms,
            granted_ttl_ms=self._granted(said.ttl_ms),
            poll_interval_ms=self._polled_every(said.poll_interval_ms),
            handle=sealed_handle,
            arguments=arguments,
        )
        allowed = msgspec.structs.replace(authority, decision=decision(Rule.TOOL_MAY, "create", binding, said.tool))
        done = await self._ledger.submit(authority.tenant, ref, command, allowed, blobs)
        if done.repeated:  # by now it may have a result to disclose, or be over
            return await self._show(await self._open(handle, said.caller, said.call, channel), said.call.method)
        return await self._view(done.state, handle)

    def _polled_every(self, wished: int | None) -> int:
        """The polling interval suggested: the tool's wish within bounds, else the setting."""
        if wished is None or wished <= 0:
            return self._settings.poll_interval_ms
        return max(POLL_INTERVAL_LEAST_MS, min(wished, POLL_INTERVAL_MOST_MS))

    def _granted(self, wished: int | None) -> int:
        """The receiver's time to live: the wish when it is sensible, capped; the default when there is none."""
        if wished is None or wished <= 0:
            return self._settings.ttl_default_ms
        return min(wished, self._settings.ttl_max_ms)

    async def get(self, said: messages.GetTask, channel: Channel) -> TaskView:
        """The task as its creator may see it now (SEP-2663, Task Polling)."""
        opened = await self._open(said.task_id, said.caller, said.call, channel)
        return await self._show(opened, said.call.method)

    async def _show(self, opened: Opened, method: str) -> TaskView:
        payloads = _disclosed(opened.state.task)
        if payloads:
            await self._recorder.disclosed(opened.state, opened.authority, method, payloads)
        else:
            self._recorder.polled(opened.state, opened.authority, method)
        return await self._view(opened.state, opened.task_id)

    async def update(self, said: messages.UpdateTask, channel: Channel) -> Done:
        """Take answers to outstanding requests: all that are valid, or none when one of them is not.

        Raises:
            InvalidAnswer: one does not satisfy its request; the refusal is on the trail, nothing else changed.
        """
        opened = await self._open(said.task_id, said.caller, said.call, channel)
        if len(said.answers) > ANSWERS_MAX:
            message = f"{len(said.answers)} answers at once; the maximum is {ANSWERS_MAX}"
            raise InvalidRequest(message)
        came = json.dumps(said.answers, default=repr).encode()  # whatever it is: what of it is no JSON is refused below
        checked, blobs, faults = await self._checked(opened.state, said)
        key = await self._payloads.vault.key(opened.state.task_ref)
        command = decide.RespondToInput(id=said.command_id, answers=checked, said=key.mac(came))
        done = await self._ledger.submit(opened.state.tenant, opened.state.task_ref, command, opened.authority, blobs)
        if done.outcome is Outcome.REFUSED and done.reason == "invalid_answer":
            told = "; ".join(f"{key!r}: {why}" for key, why in faults.items()) or "an answer does not fit its request"
            message = f"{told}. None of the answers was taken; send them again, corrected"
            raise InvalidAnswer(message)
        return Done()

    async def _checked(
        self, state: State, said: messages.UpdateTask
    ) -> tuple[tuple[decide.Answer, ...], dict[str, bytes], dict[str, str]]:
        """The answers as decisions need them, their sealed texts, and what is wrong with which."""
        scope = entry_id(state.task_ref, said.command_id)
        key = await self._payloads.vault.key(state.task_ref)
        checked: list[decide.Answer] = []
        blobs: dict[str, bytes] = {}
        faults: dict[str, str] = {}
        for name, answer in said.answers.items():
            asked = state.task.inputs.get(name)
            if asked is None:
                digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
                checked.append(decide.Answer(key_sha256=digest))
                continue
            if asked.response is not None:
                checked.append(decide.Answer(key=name))
                continue
            request = msgspec.convert(await self._payloads.open(state, asked.request), InputAsk)
            fault = answers.fault(asked.method, request.params, answer)
            if fault:
                faults[name] = fault
                checked.append(decide.Answer(key=name, fault=fault))
                continue
            response, more = await self._payloads.seal(key, f"response.{name}", scope, answer)
            blobs |= more
            checked.append(decide.Answer(key=name, action=answers.action(asked.method, answer), response=response))
        return tuple(checked), blobs, faults

    async def cancel(self, said: messages.CancelTask, channel: Channel) -> Done:
        """Record that the task is to stop; a finished one stays finished (SEP-2663, Task Cancellation)."""
        opened = await self._open(said.task_id, said.caller, said.call, channel)
        command = decide.CancelTask(id=said.command_id)
        await self._ledger.submit(opened.state.tenant, opened.state.task_ref, command, opened.authority)
        return Done()

    async def watch(self, said: messages.WatchTasks, channel: Channel) -> Granted:
        """Open a subscription to those of the tasks that are this caller's; the others are left out, uniformly."""
        views: list[TaskView] = []
        for handle in dict.fromkeys(said.task_ids):
            try:
                opened = await self._open(handle, said.caller, said.call, channel)
            except TaskNotFound:
                continue
            event = SubscriptionOpened(at_ms=self._ledger.now())
            await self._recorder.note(opened.state, opened.authority, event)
            views.append(await self._show(opened, said.call.method))
        return Granted(tasks=tuple(views))

    async def unwatch(self, said: messages.UnwatchTask, channel: Channel) -> Done:
        """Record that a subscription ended."""
        ref = self._keyring.ref(said.task_id)
        state = await self._states.by_handle(ref)
        authority, _ = caller_authority(said.caller, said.call, channel, self._settings)
        mine = identity(authority)
        if state is not None and not differences(state.task.binding, mine, state.task.binding_mode):
            closed = SubscriptionClosed(at_ms=self._ledger.now(), pushes=said.pushes, reason=said.reason)
            check = BindingCheck(mode=state.task.binding_mode)
            await self._recorder.note(state, _allowed(authority, state, check, said.call.method, mine), closed)
        return Done()

    async def refusal(self, said: messages.ReportRefusal, channel: Channel) -> Done:
        """Record that the MCP server itself turned a request away."""
        authority, _ = caller_authority(said.caller, said.call, channel, self._settings)
        ref = self._keyring.ref(said.task_id) if said.task_id else ""
        await self._recorder.denied(
            authority, said.call.method, said.code, Rule.REFUSED_BY_SERVER, ref, authority.tenant
        )
        return Done()

    async def _admit(self, caller: messages.Caller, call: messages.Call, channel: Channel) -> Authority:
        """The authority of a caller that may hold tasks at all.

        Raises:
            NotAuthorised: its issuer has no tenant here, or it is anonymous where that is not allowed.
        """
        authority, refused = caller_authority(caller, call, channel, self._settings)
        if refused is not None:
            await self._recorder.denied(authority, call.method, NotAuthorised.code, refused, "", authority.tenant)
            message = f"this caller may not hold tasks here ({refused.value})"
            raise NotAuthorised(message)
        return authority

    async def _open(self, handle: str, caller: messages.Caller, call: messages.Call, channel: Channel) -> Opened:
        """The task this handle opens for this caller.

        Raises:
            TaskNotFound: none, for whatever reason; the reason is on the trail.
        """
        authority, refused = caller_authority(caller, call, channel, self._settings)
        ref = self._keyring.ref(handle)
        mine = identity(authority)
        state = await self._located(ref, mine)
        check, rule = self._judged(handle, state, mine, refused)
        if state is not None and rule is None:
            allowed = _allowed(authority, state, check, call.method, mine)
            return Opened(state=state, authority=allowed, task_id=handle)
        denied = msgspec.structs.replace(authority, binding=check)
        shown_to = state.tenant if state is not None else authority.tenant
        await self._recorder.denied(denied, call.method, TaskNotFound.code, rule or Rule.UNKNOWN, ref, shown_to)
        raise TaskNotFound

    async def _located(self, ref: str, mine: Binding) -> State | None:
        """The state behind a reference. Only the owner's look-up, while it opens, is shortened: time tells nothing."""
        known = self._states.kept(ref)
        if known is not None and self._judged("", known, mine, None)[1] is None:
            return await self._states.of(known.tenant, ref)
        return await self._states.by_handle(ref)

    def _judged(
        self, handle: str, state: State | None, mine: Binding, refused: Rule | None
    ) -> tuple[BindingCheck | None, Rule | None]:
        """How the caller compares with the creator, and the rule that turns it away, if one does."""
        if state is None:
            return None, refused or (Rule.UNKNOWN if is_task_id(handle) else Rule.MALFORMED)
        task = state.task
        check = BindingCheck(mode=task.binding_mode, differs=differences(task.binding, mine, task.binding_mode))
        if refused is not None:
            return check, refused
        if check.differs:
            return check, Rule.OTHER_CONTEXT
        if task.expired_at_ms is not None or self._ledger.now() >= task.expires_at_ms:
            return check, Rule.EXPIRED
        return check, None

    async def _view(self, state: State, handle: str) -> TaskView:
        """The task with the payloads its status shows, opened."""
        task = state.task
        requests: dict[str, InputAsk] = {}
        if not task.status.terminal:
            for name, asked in task.outstanding.items():
                requests[name] = msgspec.convert(await self._payloads.open(state, asked.request), InputAsk)
        message = await self._payloads.open(state, task.message) if task.message else None
        result = await self._payloads.open(state, task.result) if task.result else None
        error = await self._payloads.open(state, task.error) if task.error else None
        return TaskView(
            task_id=handle,
            task_ref=state.task_ref,
            status=task.status,
            created_at_ms=task.created_at_ms,
            last_updated_at_ms=task.last_updated_at_ms,
            ttl_ms=task.ttl_ms,
            poll_interval_ms=task.poll_interval_ms,
            seq=task.seq,
            status_message=message,
            input_requests=requests,
            result=result,
            is_error=task.is_error,
            error=msgspec.convert(error, RpcError) if error is not None else None,
        )


def _allowed(authority: Authority, state: State, check: BindingCheck | None, method: str, mine: Binding) -> Authority:
    """The authority of a step on a task by the identity context that made it."""
    return msgspec.structs.replace(
        authority,
        created_by=state.task.created_by,
        binding=check,
        decision=decision(Rule.SAME_CONTEXT, method, state.task.binding, mine),
    )


def _disclosed(task: Task) -> tuple[Commitment, ...]:
    """The payloads a look at the task shows: results, errors, and the texts of outstanding requests."""
    shown = [one for one in (task.result, task.error) if one is not None]
    if not task.status.terminal:
        shown += [asked.request for asked in task.outstanding.values()]
    return tuple(shown)


def _members(binding: Binding) -> tuple[str, str, str, str]:
    return binding.tenant, binding.iss, binding.sub, binding.client_id
