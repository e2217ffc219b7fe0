"""The gate: every request of a caller passes here, and nothing else of theirs reaches the Ledger.

Guarantees: who calls, whether it was revoked, what it may do at once, and what the policy says is found out anew at
every call; a handle opens its task only for the identity context that made it, or by a grant on its trail; unknown,
foreign, expired, revoked and malformed handles take the same steps and get the same answer, and the trail says which it
was; what is shown or changed is on the trail first.

    view = await gate.get(messages.GetTask(caller=…, call=…, task_id=…), Channel(server="reports", in_process=True))
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable

import msgspec

from tasktrail.events import commands
from tasktrail.events.authority import (
    Authority,
    Binding,
    BindingMode,
    Level,
    Standing,
    Trigger,
    differences,
    identity,
)
from tasktrail.events.errors import InvalidAnswer, InvalidRequest, NotAuthorised, RateLimited, TaskNotFound
from tasktrail.events.facts import Commitment, SubscriptionClosed, SubscriptionOpened, TaskSupport
from tasktrail.events.subjects import entry_id
from tasktrail.events.task import Outcome, Task
from tasktrail.projections.current import State
from tasktrail.services import lifetime, messages
from tasktrail.services.access import answers, listing
from tasktrail.services.access.asking import Askers, Asking, Checks
from tasktrail.services.access.callers import Channel, server_authority
from tasktrail.services.access.judgement import Judgement, judged
from tasktrail.services.access.parents import Parents
from tasktrail.services.access.payloads import Payloads, encoded
from tasktrail.services.access.policy import Action, Making
from tasktrail.services.access.recorder import Recorder
from tasktrail.services.access.rules import Rule, decision, reported
from tasktrail.services.access.views import disclosed, shown
from tasktrail.services.inventory import Handle
from tasktrail.services.keyring import Keyring
from tasktrail.services.ledger import Ledger
from tasktrail.services.messages import Done, Granted, InputAsk, Listed, TaskView
from tasktrail.services.sealing import SealError
from tasktrail.services.settings import Settings
from tasktrail.services.states import States

ANSWERS_MAX = 64
POLLED = "tasks/get"
PUSHED = frozenset({"notifications/tasks", "notifications/tasks/status"})
"""What pushes are called on the 2026-07-28 wire and on the 2025-11-25 wire."""
POLL_INTERVAL_LEAST_MS, POLL_INTERVAL_MOST_MS = 50, 600_000

RENEWED_BEFORE_S = 60
"""A creator's later credential goes on the trail once the one known there has less than this left."""

_RIGHTS = {Action.GET: "get", Action.UPDATE: "update", Action.CANCEL: "cancel", Action.SUBSCRIBE: "subscribe"}


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
        checks: Checks,
        settings: Settings,
    ) -> None:
        self._ledger, self._states, self._keyring = ledger, states, keyring
        self._payloads, self._recorder, self._settings = payloads, recorder, settings
        self._askers, self.parents = Askers(checks, recorder), Parents(states, keyring)
        self._policies, self._limits = checks.policies, checks.limits
        self.on_opened: Callable[[str, Authority], None] = lambda _ref, _by: None
        self.on_created: Callable[[State], None] = lambda _state: None
        self.owned: Callable[[Binding], Iterable[Handle]] = lambda _who: ()
        """Handles that may open their task for somebody, at least all that do (`Inventory.open_to`)."""
        self.on_defined: Callable[[Channel, str, str], None] = lambda _channel, _tool, _sha256: None
        """Told how a tool is defined now (`Definitions.seen`)."""

    async def create(self, said: messages.CreateTask, channel: Channel) -> TaskView:
        """Make a task; when this returns, every replica resolves its handle (SEP-2663, Task Creation).

        Raises:
            NotAuthorised: this caller may hold no tasks, or the policy does not let it make this one.
            RateLimited: it, or its tenant, has as many as it may.
        """
        if said.task_support is TaskSupport.FORBIDDEN:
            message = f"tool {said.tool!r} is forbidden as a task; call it synchronously"
            raise InvalidRequest(message)
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            return await self._create(said, channel, asking)

    async def _create(self, said: messages.CreateTask, channel: Channel, asking: Asking) -> TaskView:
        handle = self._keyring.task_id(channel.server, *_members(asking.mine), said.command_id)
        ref = self._keyring.ref(handle)
        allowed = await self._admitted(said, channel, asking, ref)
        scope = entry_id(ref, said.command_id)
        if said.arguments is not None:
            encoded("arguments", said.arguments, self._settings.payload_max_bytes)
        try:
            key = await self._payloads.vault.make(ref)
        except SealError:  # it was made before, its time is over, and what it held is gone
            await self._open(handle, asking, Action.GET)
            raise
        sealed_handle, blobs = await self._payloads.seal(key, "handle", scope, handle)
        arguments: Commitment | None = None
        if said.arguments is not None:
            arguments, more = await self._payloads.seal(key, "arguments", scope, said.arguments)
            blobs |= more
        command = self._creation(said, channel, asking.mine, sealed_handle, arguments)
        parent, level = await self.parents.of(
            said, allowed.tenant, lambda state: self._judged(said.parent_task, state, asking, "get").rule is None
        )
        command = msgspec.structs.replace(command, parent=parent, parent_level=level)
        await self._believed(said, asking)
        done = await self._ledger.submit(allowed.tenant, ref, command, allowed, blobs)
        self.on_created(done.state)
        self.on_defined(channel, said.tool, said.tool_sha256)
        if done.repeated:  # by now it may have a result to disclose, or be over
            return await self._show(await self._open(handle, asking, Action.GET), said.call.method)
        return await shown(done.state, handle, self._payloads, status_only=False)

    def _creation(
        self,
        said: messages.CreateTask,
        channel: Channel,
        mine: Binding,
        handle: Commitment,
        arguments: Commitment | None,
    ) -> commands.CreateTask:
        life = lifetime.granted(self._settings, channel.server, said.tool, mine.tenant, wished_ms=said.ttl_ms)
        return commands.CreateTask(
            id=said.command_id,
            binding=mine,
            binding_mode=life.binding,
            server=channel.server,
            tool=said.tool,
            tool_sha256=said.tool_sha256,
            task_support=said.task_support,
            wire=said.call.wire,
            protocol_version=said.call.protocol_version,
            client_extensions=said.client_extensions,
            client_features=said.client_features,
            requested_ttl_ms=life.requested_ms,
            granted_ttl_ms=life.granted_ms,
            ttl_set_by=life.set_by,
            retention_ms=life.retention,
            poll_interval_ms=self._polled_every(said.poll_interval_ms),
            handle=handle,
            arguments=arguments,
            on_worker_lost=said.on_worker_lost,
            worker=said.worker,
        )

    async def _admitted(self, said: messages.CreateTask, channel: Channel, asking: Asking, ref: str) -> Authority:
        """The authority of a caller that may make this task, which is to be `ref`.

        Raises:
            NotAuthorised, RateLimited: it may not; on the trail.
        """
        authority, method = asking.authority, said.call.method
        await self._believed(said, asking)
        making = Making(
            server=channel.server,
            tool=said.tool,
            tool_sha256=said.tool_sha256,
            task_support=said.task_support,
            tenant=authority.tenant,
        )
        decided = self._policies.decide(Action.CREATE, authority, about=making)
        allowed = msgspec.structs.replace(authority, decision=decided)
        if decided.effect != "allow":
            await self._recorder.denied(allowed, method, NotAuthorised.code, Rule.POLICY, "", authority.tenant)
            message = f"the policy does not let this caller make a task of {said.tool!r} ({decided.reason})"
            raise NotAuthorised(message)
        try:
            self._limits.create(asking.mine, ref)
        except RateLimited:
            await self._recorder.denied(authority, method, RateLimited.code, Rule.RATE_LIMITED, "", authority.tenant)
            raise
        return allowed

    async def _believed(self, said: messages.CreateTask | messages.ListTasks, asking: Asking) -> None:
        """See that nothing speaks against who calls, now.

        Raises:
            NotAuthorised: something does; on the trail.
        """
        asking = self._askers.as_of_now(asking)
        if asking.refused is not None:
            authority = asking.authority
            await self._recorder.denied(
                authority, said.call.method, NotAuthorised.code, asking.refused, "", authority.tenant
            )
            message = f"this caller may not hold tasks here ({asking.refused.value})"
            raise NotAuthorised(message)

    def _polled_every(self, wished: int | None) -> int:
        """The polling interval suggested: the tool's wish within bounds, else the setting."""
        if wished is None or wished <= 0:
            return self._settings.poll_interval_ms
        return max(POLL_INTERVAL_LEAST_MS, min(wished, POLL_INTERVAL_MOST_MS))

    async def get(self, said: messages.GetTask, channel: Channel) -> TaskView:
        """The task as its creator may see it now (SEP-2663, Task Polling)."""
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            pushed = said.call.method in PUSHED
            opened = await self._open(said.task_id, asking, Action.SUBSCRIBE if pushed else Action.GET)
            await self._paced(opened, asking)
            return await self._show(opened, said.call.method, status_only=said.status_only)

    async def list(self, said: messages.ListTasks, channel: Channel) -> Listed:
        """The tasks that `get` opens for this caller, the newest first, each recorded as a poll of it.

        A page may hold fewer than asked for, and yet not be the last.

        Raises:
            InvalidRequest: the cursor is none of ours.
            NotAuthorised: this caller may hold no tasks, or is nobody in particular (`listing.NotListed`).
            RateLimited: it lists too often.
        """
        after = listing.place(said.cursor)
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            await self._believed(said, asking)
            try:
                listing.tell_apart(said.caller)
                self._limits.list(asking.mine, self._settings.poll_interval_ms)
            except (listing.NotListed, RateLimited) as refusal:
                by, rule = asking.authority, Rule.RATE_LIMITED if refusal.retriable else Rule.ANONYMOUS
                await self._recorder.denied(by, said.call.method, refusal.code, rule, "", by.tenant)
                raise
            views: list[TaskView] = []
            last: Handle | None = None
            for looked, handle in enumerate(listing.following(self.owned(asking.mine), after)):
                if last is not None and (len(views) == said.limit or looked == listing.LOOKED_MAX):
                    return Listed(tasks=tuple(views), next_cursor=listing.cursor(last))
                view = await self._listed(handle, asking)
                if view is not None:
                    views.append(view)
                last = handle
            return Listed(tasks=tuple(views))

    async def _listed(self, handle: Handle, asking: Asking) -> TaskView | None:
        """The task as a list shows it to this caller; None when it does not open for it."""
        asking = self._askers.as_of_now(asking)
        state = await self._states.of(handle.tenant, handle.task_ref)
        found = self._judged("", state, asking, "get")
        if state is None or found.rule is not None:
            return None
        authority, method = self._allowed(asking, state, found, Action.GET), asking.call.method
        if authority.decision is None or authority.decision.effect != "allow":
            await self._recorder.denied(authority, method, TaskNotFound.code, Rule.POLICY, state.task_ref, state.tenant)
            return None
        view = await listing.view(state, await self._states.creation(state), self._payloads)
        if view is not None:
            self.on_opened(state.task_ref, authority)
            self._recorder.polled(state, authority, method)
        return view

    async def _paced(self, opened: Opened, asking: Asking) -> None:
        """See that a task is polled as often as it was told, and not much more.

        Raises:
            RateLimited: it is polled too early, too often.
        """
        if asking.call.method != POLLED:
            return  # a push, or another look of ours
        try:
            self._limits.poll(opened.state, asking.mine)
        except RateLimited:
            state, authority = opened.state, opened.authority
            await self._recorder.denied(
                authority, asking.call.method, RateLimited.code, Rule.RATE_LIMITED, state.task_ref, state.tenant
            )
            raise

    async def _show(self, opened: Opened, method: str, *, status_only: bool = False) -> TaskView:
        payloads = () if status_only else disclosed(opened.state.task)
        if payloads:
            await self._recorder.disclosed(opened.state, opened.authority, method, payloads)
        else:
            self._recorder.polled(opened.state, opened.authority, method)
        return await shown(opened.state, opened.task_id, self._payloads, status_only=status_only)

    async def update(self, said: messages.UpdateTask, channel: Channel) -> Done:
        """Take answers to outstanding requests: all that are valid, or none when one of them is not.

        Raises:
            InvalidAnswer: one does not satisfy its request; the refusal is on the trail, nothing else changed.
        """
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            opened = await self._open(said.task_id, asking, Action.UPDATE)
            if len(said.answers) > ANSWERS_MAX:
                message = f"{len(said.answers)} answers at once; the maximum is {ANSWERS_MAX}"
                raise InvalidRequest(message)
            return await self._answer(said, opened)

    async def _answer(self, said: messages.UpdateTask, opened: Opened) -> Done:
        came = json.dumps(said.answers, default=repr).encode()  # whatever it is: what of it is no JSON is refused below
        checked, blobs, faults = await self._checked(opened.state, said)
        key = await self._payloads.vault.key(opened.state.task_ref)
        command = commands.RespondToInput(id=said.command_id, answers=checked, said=key.mac(came))
        done = await self._ledger.submit(opened.state.tenant, opened.state.task_ref, command, opened.authority, blobs)
        if done.outcome is Outcome.REFUSED and done.reason == "invalid_answer":
            told = "; ".join(f"{key!r}: {why}" for key, why in faults.items()) or "an answer does not fit its request"
            message = f"{told}. None of the answers was taken; send them again, corrected"
            raise InvalidAnswer(message)
        return Done()

    async def _checked(
        self, state: State, said: messages.UpdateTask
    ) -> tuple[tuple[commands.Answer, ...], dict[str, bytes], dict[str, str]]:
        """The answers as decisions need them, their sealed texts, and what is wrong with which."""
        scope = entry_id(state.task_ref, said.command_id)
        key = await self._payloads.vault.key(state.task_ref)
        checked: list[commands.Answer] = []
        blobs: dict[str, bytes] = {}
        faults: dict[str, str] = {}
        for name, answer in said.answers.items():
            asked = state.task.inputs.get(name)
            if asked is None:
                digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
                checked.append(commands.Answer(key_sha256=digest))
                continue
            if asked.response is not None:
                checked.append(commands.Answer(key=name))
                continue
            request = msgspec.convert(await self._payloads.open(state, asked.request), InputAsk)
            fault = answers.fault(asked.method, request.params, answer)
            if fault:
                faults[name] = fault
                checked.append(commands.Answer(key=name, fault=fault))
                continue
            response, more = await self._payloads.seal(key, f"response.{name}", scope, answer)
            blobs |= more
            checked.append(commands.Answer(key=name, action=answers.action(asked.method, answer), response=response))
        return tuple(checked), blobs, faults

    async def cancel(self, said: messages.CancelTask, channel: Channel) -> Done:
        """Record that the task is to stop; a finished one stays finished (SEP-2663, Task Cancellation)."""
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            opened = await self._open(said.task_id, asking, Action.CANCEL)
            command = commands.CancelTask(id=said.command_id)
            await self._ledger.submit(opened.state.tenant, opened.state.task_ref, command, opened.authority)
        return Done()

    async def watch(self, said: messages.WatchTasks, channel: Channel) -> Granted:
        """Open a subscription to those of the tasks that are this caller's; the others are left out, uniformly."""
        views: list[TaskView] = []
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            for handle in dict.fromkeys(said.task_ids):
                try:
                    opened = await self._open(handle, asking, Action.SUBSCRIBE)
                except (TaskNotFound, RateLimited):
                    continue
                event = SubscriptionOpened(at_ms=self._ledger.now())
                await self._recorder.note(opened.state, opened.authority, event)
                views.append(await self._show(opened, said.call.method))
        return Granted(tasks=tuple(views))

    async def unwatch(self, said: messages.UnwatchTask, channel: Channel) -> Done:
        """Record that a subscription ended, whatever ended it: also the caller's own right to it."""
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            state = await self._states.by_handle(self._keyring.ref(said.task_id))
            if state is None:
                return Done()
            closed = SubscriptionClosed(at_ms=self._ledger.now(), pushes=said.pushes, reason=said.reason)
            found = self._judged("", state, asking, "subscribe")
            mine = found.check is not None and (found.check.matches or found.grant)
            if mine and self._askers.as_of_now(asking).refused is None:
                await self._recorder.note(state, self._allowed(asking, state, found, Action.SUBSCRIBE), closed)
            elif self._askers.as_of_now(asking).refused is not None and state.task.server == channel.server:
                # Its credential ended, and with it the stream: that the stream ended is then the server's own word.
                ended = server_authority(channel, state.tenant, "unwatch", Trigger.MCP_SERVER)
                await self._recorder.note(
                    state,
                    msgspec.structs.replace(
                        ended,
                        created_by=state.task.created_by,
                        decision=decision(Rule.SERVER_RUNS_TASK, "unwatch", state.task.binding, channel.server),
                    ),
                    closed,
                )
        return Done()

    async def refusal(self, said: messages.ReportRefusal, channel: Channel) -> Done:
        """Record that the MCP server itself turned a request away."""
        async with self._askers.asking(said.caller, said.call, channel) as asking:
            ref = self._keyring.ref(said.task_id) if said.task_id else ""
            authority = asking.authority
            await self._recorder.denied(
                authority, said.call.method, said.code, reported(said.reason), ref, authority.tenant
            )
        return Done()

    async def _open(self, handle: str, asking: Asking, action: Action) -> Opened:
        """The task this handle opens for this caller.

        Raises:
            TaskNotFound: none, for whatever reason; the reason is on the trail.
            RateLimited: the caller has looked for too many that it may not open; also on the trail.
        """
        ref, right, method = self._keyring.ref(handle), _RIGHTS[action], asking.call.method
        asking = self._askers.as_of_now(asking)
        state = await self._located(ref, asking, right)
        asking = self._askers.as_of_now(asking)
        found = self._judged(handle, state, asking, right)
        authority = msgspec.structs.replace(asking.authority, binding=found.check, grant=found.grant)
        if state is not None and found.rule is None:
            authority = self._allowed(asking, state, found, action)
            if authority.decision is not None and authority.decision.effect == "allow":
                self.on_opened(ref, authority)
                return await self._renewed(Opened(state=state, authority=authority, task_id=handle))
            found = found._replace(rule=Rule.POLICY)
        shown_to = state.tenant if state is not None else authority.tenant
        refusal: TaskNotFound | RateLimited = TaskNotFound()
        try:
            if method not in PUSHED:  # nobody looks for anything: a stream looks at what it was granted
                self._limits.missed(asking.whose)
        except RateLimited as limited:
            refusal = limited
        await self._recorder.denied(authority, method, refusal.code, found.rule or Rule.UNKNOWN, ref, shown_to)
        await asking.answerable.wait()
        raise refusal

    async def _located(self, ref: str, asking: Asking, right: str) -> State | None:
        """The state behind a reference. Only the owner's look-up, while it opens, is shortened: time tells nothing."""
        known = self._states.kept(ref)
        if known is not None and self._judged("", known, asking, right).rule is None:
            return await self._states.of(known.tenant, ref)
        return await self._states.by_handle(ref)

    def _judged(self, handle: str, state: State | None, asking: Asking, right: str) -> Judgement:
        task = state.task if state is not None else None
        found = judged(handle, task, asking.mine, refused=asking.refused, right=right, now_ms=self._ledger.now())
        if found.rule is None and task is not None and not _may_speak_of(asking.authority, task):
            return found._replace(rule=Rule.OTHER_SERVER)
        return found

    def _allowed(self, asking: Asking, state: State, found: Judgement, action: Action) -> Authority:
        """The authority of a step on a task by whom it opens for, with what the policy says of it."""
        authority = msgspec.structs.replace(
            asking.authority, created_by=state.task.created_by, binding=found.check, grant=found.grant
        )
        decided = self._policies.decide(action, authority, about=state.task, binding=found.check)
        return msgspec.structs.replace(authority, decision=decided)

    async def _renewed(self, opened: Opened) -> Opened:
        """The creator is back with a later credential: from here on the task stands on that one."""
        task, credential = opened.state.task, opened.authority.credential
        if credential is None:
            return opened
        until_s = credential.exp
        ends_s = task.until_s - self._ledger.now() // 1000
        someone_else = differences(task.binding, identity(opened.authority), BindingMode.USER)
        if someone_else or not 0 < task.until_s < until_s or ends_s > RENEWED_BEFORE_S or not task.live:
            return opened
        if task.standing is Standing.REVOKED:
            return opened  # what was revoked is for an operator to lift
        # An id of its own each time: when two come at once, the second changes nothing.
        command = commands.ChangeAuthority(
            id=secrets.token_hex(16),
            standing=Standing.VALID,
            until_s=until_s,
            token_hash=credential.token_hash,
            jti=credential.jti,
        )
        done = await self._ledger.submit(opened.state.tenant, opened.state.task_ref, command, opened.authority)
        return msgspec.structs.replace(opened, state=done.state)


def _may_speak_of(authority: Authority, task: Task) -> bool:
    """Whether the caller is proved, or comes through the server that runs the task: its word is for its own tasks."""
    principal, request = authority.principal, authority.request
    proved = principal is not None and principal.level in {Level.BOUND, Level.VERIFIED, Level.VOUCHED}
    return proved or (request is not None and request.server == task.server)


def _members(binding: Binding) -> tuple[str, str, str, str]:
    return binding.tenant, binding.iss, binding.sub, binding.client_id
