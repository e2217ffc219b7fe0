"""Timelines, tasks and the live tail for a terminal: read by a tired person, wherever it is shown.

Guarantees: no information by colour alone; text from the trail is printed in printable characters only and never read
as markup, so that it cannot steer the terminal; fits any width from 60 columns on; the steps of one command stand
together with who caused them, by what credential, at which level of evidence, allowed by which rule. Times are UTC.

    show(console, TimelineView(timeline, now=datetime.now(UTC)))
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

import msgspec
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from tasktrail.events.facts import SCANNED_IN_PART
from tasktrail.projections.audit.sentences import printable
from tasktrail.projections.audit.timeline import AuthorityShown, Gap, Step, StepKind, TaskShown, Timeline, Verdict
from tasktrail.projections.audit.verdict import by_creator
from tasktrail.services.wording import (
    STANDINGS,
    authority,
    clock,
    day,
    evidence,
    happened,
    issuer,
    lasted,
    moment,
    provenance,
    remarks,
    since,
    status_words,
    who,
    without_count,
)

WIDE = 110
"""From so many columns on, a step's status and its place in the stream stand beside it."""

_TIMES = "\N{MULTIPLICATION SIGN}"
_REF_LENGTH = 32
_STATUS_LENGTH = 14
_QUIET = "dim"
_LOUD = "bold white on red"
_STATUS: dict[str, str] = {
    "working": "cyan",
    "input_required": "bold yellow",
    "completed": "bold green",
    "failed": "bold red",
    "cancelled": "bold magenta",
}
_MARKS: dict[StepKind, tuple[str, str, str]] = {
    StepKind.TRANSITION: ("●", "", "bold"),
    StepKind.MESSAGE: ("»", "", ""),
    StepKind.ACCESS: ("·", "", ""),
    StepKind.DENIAL: ("✗", "DENIED ", "bold red"),
    StepKind.REFUSAL: ("!", "REFUSED ", "bold yellow"),
    StepKind.ANOMALY: ("▲", "ANOMALY ", _LOUD),
    StepKind.GOVERNANCE: ("◆", "", "bold"),
    StepKind.CONTROL: ("○", "", ""),
    StepKind.UNKNOWN: ("?", "", "bold yellow"),
}
_ASCII = str.maketrans("●»·✗▲◆○→…—" + _TIMES, "*>.x!#o>~-x")


def show(console: Console, view: ConsoleRenderable) -> None:
    """Print `view`: with other marks where Unicode is not taken, without padding where it is no terminal."""
    if not console.encoding.lower().startswith("utf"):
        view = _Ascii(view)
    if console.is_terminal:
        console.print(view)
        return
    with console.capture() as captured:
        console.print(view)
    console.file.write("\n".join(line.rstrip() for line in captured.get().split("\n")))


class _Ascii:
    def __init__(self, view: ConsoleRenderable) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self._view, options):
            yield Segment(text.translate(_ASCII), style, control)


class TimelineView:
    """One task's history. `now` is an aware time; `ids`: with the id of each entry."""

    def __init__(self, timeline: Timeline, *, now: datetime, ids: bool = False) -> None:
        self._timeline, self._now, self._ids = timeline, now, ids

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Header, what needs attention, the steps, what was left out, the verdict."""
        yield _header(self._timeline, self._now)
        yield Text()
        yield _steps(self._timeline, wide=options.max_width >= WIDE, ids=self._ids)
        if omitted := self._timeline.steps_omitted:
            yield Text()
            yield Text(f"▲ {omitted} later steps are left out", style=_LOUD)
        if self._timeline.verdict is not None:
            yield Text()
            yield _verdict(self._timeline.verdict)


def _verdict(verdict: Verdict) -> Table:
    """The verdict and why, what is wrong before what is only not over yet."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style=_QUIET, no_wrap=True)
    grid.add_column(overflow="fold")
    style = {"clean": "bold green", "open": "bold yellow"}.get(verdict.verdict, _LOUD)
    grid.add_row("verdict", Text(f"{verdict.verdict.upper()}: ", style=style).append(verdict.what, style="not bold"))
    for one in verdict.findings:
        mark = Text("·" if one.open else "✗", style="" if one.open else "bold red", justify="right")
        times = f" {_TIMES}{one.count}" if one.count > 1 else ""
        grid.add_row(mark, Text(one.what).append(f"{times} #{one.stream_seq}", style=_QUIET))
    return grid


def _header(timeline: Timeline, now: datetime) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=_QUIET, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("task", Text(printable(timeline.task_ref), style="bold"))
    if timeline.task is None:
        grid.add_row("status", Text("unknown: no creation of it is on the trail", style=_LOUD))
    else:
        for name, text in _facts(timeline.task, timeline, now):
            grid.add_row(name, text)
    grid.add_row("read", Text(f"the trail up to #{timeline.as_of}; times are UTC"))
    for text in _attention(timeline):
        grid.add_row(Text("▲ alert", style="bold red"), text)
    for note in _notes(timeline):
        grid.add_row("note", Text(note))
    return grid


def _facts(task: TaskShown, timeline: Timeline, now: datetime) -> Iterator[tuple[str, Text]]:
    start = moment(task.created_at)
    status = Text(status_words(task.status, is_error=task.is_error), style=_STATUS.get(task.status, "bold"))
    if task.cancel_requested_at and not _terminal(task.status):
        status.append(f", cancellation requested {clock(task.cancel_requested_at)}")
    yield "status", status
    yield (
        "tool",
        Text(
            f"{printable(task.tool)} on {printable(task.server)} (task {printable(task.task_support)}"
            + (f", wire {printable(task.wire)})" if task.wire else ")")
        ),
    )
    yield "made by", Text(_made_by(task, timeline))
    yield "created", Text(f"{day(task.created_at)} {clock(task.created_at)}")
    yield "updated", Text(f"{_on(task.last_updated_at, task)} ({since(task.last_updated_at, start)})")
    yield "handle", Text(_handle(task, now))
    if timeline.authority is not None:
        yield "authority", _authority(timeline.authority, now)
    if task.holds or task.shredded_at:
        yield "payloads", Text(_payloads(task))
    yield "trail", Text(f"{task.entries} entries, from #{task.first_seq} to #{task.last_seq}")


def _made_by(task: TaskShown, timeline: Timeline) -> str:
    made = task.creator
    name = printable(made.sub or "an anonymous caller") + (f" at {printable(made.iss)}" if made.iss else "")
    client = f" via {printable(made.client_id)}" if made.client_id else ""
    first = next((step.who for step in timeline.steps if step.type == "TaskCreated"), None)
    levels = "".join(f", {said}" for said in evidence(first)) if first else ""
    return f"{name}{client}, tenant {printable(task.tenant)}{levels}; binding {printable(made.binding_mode)}"


def _handle(task: TaskShown, now: datetime) -> str:
    """Its time to live: asked for, granted, by whom, and what it came to."""
    wished = task.requested_ttl_ms
    asked = f" of {_seconds(wished)} asked for" if wished is not None and wished != task.ttl_ms else ""
    decided = f", decided by the {printable(task.ttl_set_by.replace('_', ' '))}" if task.ttl_set_by else ""
    kept = f", {_seconds(task.effective_ttl_ms)} with its retention" if task.effective_ttl_ms != task.ttl_ms else ""
    granted = f"{_seconds(task.ttl_ms)}{asked}{decided}{kept}"
    if task.expired_at:
        return f"lived {granted}; expired {_on(task.expired_at, task)}, opens nothing any more"
    if task.revoked_at:
        return f"granted {granted}; revoked {_on(task.revoked_at, task)}, opens nothing any more"
    ends = moment(task.expires_at)
    if ends is None:
        return f"lives {granted}"
    verb, left = ("opens until", "left") if ends > now else ("was due to expire", "ago")
    return f"lives {granted}; {verb} {_on(task.expires_at, task)} ({lasted(ends - now, precise=False)} {left})"


def _authority(authority: AuthorityShown, now: datetime) -> Text:
    """The decision then, and what the creator's authority is worth now."""
    then, ends = authority.then, moment(authority.now.until)
    rule = then.rule
    version = f" ({printable(rule.policy_version)})" if rule and rule.policy_version else ""
    verb = "allowed by rule" if rule and rule.effect == "allow" else "denied by rule"
    said = Text(f"then {verb} {printable(rule.reason or 'unnamed')}{version}; " if rule else "then no decision; ")
    standing = authority.now.standing
    if standing == "valid" and ends is not None and ends <= now:
        standing = "lapsed"
    until = f" {day(authority.now.until)} {clock(authority.now.until, millis=False)}" if ends else ""
    words = {
        "valid": f"now it stands, until{until}",
        "lapsed": f"now it has lapsed, its credential ended{until}",
        "revoked": "now it is REVOKED",
        "unknown": "now unknown, its credential says no end",
    }
    said.append(words.get(standing, printable(standing)), style=_LOUD if standing == "revoked" else "")
    if authority.now.policy_version and rule and authority.now.policy_version != rule.policy_version:
        said.append(f"; policy {printable(authority.now.policy_version)} decides now")
    for one in authority.now.revocations:
        said.append(f" · {printable(one.kind)}, revocation {printable(one.revocation)} #{one.stream_seq}: ")
        said.append(printable(one.reason))
    return said


def _payloads(task: TaskShown) -> str:
    if task.shredded_at:
        return f"unreadable, their key was destroyed {_on(task.shredded_at, task)}"
    return f"kept by {_some(task.holds, 'hold')}, whatever their retention says"


def _seconds(duration_ms: int) -> str:
    return lasted(timedelta(milliseconds=duration_ms), precise=False)


def _on(text: str | None, task: TaskShown) -> str:
    """The time of day, with its date unless that is the task's first one."""
    date = day(text)
    return clock(text) if date == day(task.created_at) else f"{date} {clock(text)}"


def _terminal(status: str) -> bool:
    return status in {"completed", "failed", "cancelled"}


def _attention(timeline: Timeline) -> Iterator[Text]:
    """What should not be overlooked, the worst first."""
    kinds = [step.kind for step in timeline.steps]
    if gaps := [gap for gap in timeline.gaps if not gap.after_end]:
        yield Text(f"{_some(len(gaps), 'gap')}: something may be missing here", style=_LOUD)
    if anomalies := kinds.count(StepKind.ANOMALY):
        as_what = "an entry" if anomalies == 1 else "entries"
        yield Text(f"{_some(anomalies, 'message')} not accepted as {as_what} of this task", style=_LOUD)
    strangers = [step for step in timeline.steps if step.kind is StepKind.DENIAL and not _own(step, timeline)]
    if strangers:
        callers = len({(one.who.iss, one.who.sub, one.who.client_id) for one in strangers if one.who})
        times = sum(one.count for one in strangers)
        yield Text(f"{_some(times, 'attempt')} denied, of {_some(callers, 'caller')}", style="bold red")
    if unknown := kinds.count(StepKind.UNKNOWN):
        yield Text(f"{_some(unknown, 'step')} of a newer version, shown without their meaning", style="bold yellow")


def _notes(timeline: Timeline) -> Iterator[str]:
    """What happens in the best of lives."""
    own = [step for step in timeline.steps if step.kind is StepKind.DENIAL and _own(step, timeline)]
    if own:
        reasons = ", ".join(sorted({printable(reason) for one in own for reason in one.reasons}))
        yield f"its creator was turned away {_some(sum(one.count for one in own), 'time')}: {reasons}"
    if refused := sum(step.kind is StepKind.REFUSAL for step in timeline.steps):
        yield f"{_some(refused, 'command')} refused, which changed nothing: the task did not admit it"
    if late := sum(gap.after_end for gap in timeline.gaps):
        yield f"{_some(late, 'gap')} after its end: repeated accesses may be missing, nothing of the task itself"
    if long := sum(SCANNED_IN_PART in one.flags for step in timeline.steps for one in step.payloads):
        yield f"{_some(long, 'payload')} looked through for secrets only in the first MiB"


def _own(step: Step, timeline: Timeline) -> bool:
    return timeline.task is not None and by_creator(timeline.task, step.who)


def _some(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _steps(timeline: Timeline, *, wide: bool, ids: bool) -> Table:
    grid = _Grid(wide=wide, ids=ids)
    start = moment(timeline.task.created_at if timeline.task else None)
    gaps = sorted(timeline.gaps, key=lambda gap: gap.stream_seq)
    for entry in _merged(_as_it_happened(timeline.steps)):
        while gaps and entry.steps[0].first is None and gaps[0].stream_seq <= entry.steps[0].stream_seq:
            grid.gap(gaps.pop(0))
        grid.entry(entry, start)
    for gap in gaps:
        grid.gap(gap)
    return grid.table


class _Entry(NamedTuple):
    """The steps of one entry; of several, when they are one run of accesses that was recorded in pieces."""

    steps: Sequence[Step]
    last_seq: int

    @property
    def place(self) -> str:
        first = self.steps[0].stream_seq
        return f"#{first}" if first == self.last_seq else f"#{first}…{self.last_seq}"


def _as_it_happened(steps: Sequence[Step]) -> Iterator[_Entry]:
    """The entries in the stream's order, but folded runs, which are recorded late, where they began."""
    entries = [_Entry(list(same), seq) for seq, same in groupby(steps, key=lambda step: step.stream_seq)]
    runs = deque(sorted((one for one in entries if one.steps[0].first), key=lambda one: one.steps[0].first or ""))
    for entry in entries:
        first = entry.steps[0]
        if first.first:
            continue
        while runs and first.time and (runs[0].steps[0].first or "") < first.time:
            yield runs.popleft()
        yield entry
    yield from runs


def _merged(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """Runs of the same caller that say the same and follow each other, as one: an hour of polling is one line."""
    held: _Entry | None = None
    for entry in entries:
        if held is None:
            held = entry
        elif _alike(held.steps[0], entry.steps[0]):
            run, more = held.steps[0], entry.steps[0]
            whole = msgspec.structs.replace(
                run, count=run.count + more.count, last=max(run.last or "", more.last or ""), what=without_count(run)
            )
            held = _Entry([whole], max(held.last_seq, entry.last_seq))
        else:
            yield held
            held = entry
    if held is not None:
        yield held


def _alike(run: Step, more: Step) -> bool:
    return bool(
        run.first
        and more.first
        and (run.type, run.rule, without_count(run)) == (more.type, more.rule, without_count(more))
        and provenance(run) == provenance(more)
    )


class _Grid:
    """The rows of a timeline."""

    def __init__(self, *, wide: bool, ids: bool) -> None:
        self._wide, self._ids = wide, ids
        self._today = ""
        self._told: dict[object, int] = {}
        self.table = Table.grid(padding=(0, 1), expand=True)
        self.table.add_column(justify="right", no_wrap=True, min_width=9, style=_QUIET)
        self.table.add_column(justify="right", no_wrap=True, min_width=12)
        self.table.add_column(no_wrap=True)
        self.table.add_column(ratio=1, overflow="fold")
        if wide:
            self.table.add_column(no_wrap=True)

    def _row(self, *cells: Text) -> None:
        self.table.add_row(*cells, *[Text()] * (len(self.table.columns) - len(cells)))

    def entry(self, entry: _Entry, start: datetime | None) -> None:
        """The steps of one entry, then who caused them: in full when it is not as it was before."""
        steps = entry.steps
        date = day(happened(steps[0]))
        if date and date != self._today:
            self._today = date
            self._row(Text(), Text(date, style="bold"))
        for step in steps:
            self._step(step, start)
        last = steps[-1]
        same = provenance(last)
        entry_id = f" · entry {printable(last.entry_id)}" if self._ids and last.entry_id else ""
        told = authority(last, like=self._told.get(same), wide=self._wide) + entry_id
        self._told.setdefault(same, last.stream_seq)
        self._row(Text(), Text(entry.place, style=_QUIET), Text(), Text(told, style=_QUIET))

    def _step(self, step: Step, start: datetime | None) -> None:
        mark, _, style = _MARKS[step.kind]
        body, change = _what(step), _change(step)
        cells = [Text(since(happened(step), start)), Text(clock(happened(step))), Text(mark, style=style), body]
        if self._wide:
            cells.append(change)
        elif change:
            body.append("  ").append_text(change)
        self._row(*cells)
        for sign, said in remarks(step):
            self._row(Text(), Text(), Text(sign, style=_LOUD), Text(said, style="bold red" if sign else _QUIET))

    def gap(self, gap: Gap) -> None:
        """Something that may be missing."""
        if gap.source == "stream":
            last = gap.stream_seq + gap.sequences - 1
            where = f"#{gap.stream_seq}" if gap.sequences == 1 else f"#{gap.stream_seq} to #{last}"
        else:
            where = f"{day(gap.since)} {clock(gap.since)} to {clock(gap.until)}"
        body = Text(f"GAP {where}: {printable(gap.what)}", style=_LOUD)
        self._row(Text(), Text(), Text("▲", style=_LOUD), body)
        self._row(Text(), Text(), Text(), Text(gap.cause, style=_QUIET))


def _what(step: Step) -> Text:
    """What happened, a folded run with how many it holds."""
    _, word, style = _MARKS[step.kind]
    what = without_count(step)
    if word:  # the mark says it already
        what = what.replace(f" {word.strip().lower()}", "", 1)
    if step.count == 1:
        return Text(word + what, style=style)
    first, last = moment(step.first), moment(step.last)
    over = f" over {lasted(last - first)}" if first and last and last > first else ""
    return Text(word, style=style).append(f"{_TIMES}{step.count}{over} ", style="bold").append(what)


def _change(step: Step) -> Text:
    """The status before and after, empty when it stayed."""
    before, after = step.status_before, step.status_after
    if after is None or after == before or step.kind is StepKind.ACCESS:
        return Text()  # looking changes nothing: what stands there is the status when a folded run was written
    change = Text(f"{printable(before)} → " if before else "→ ", style=_QUIET)
    return change.append(printable(after), style=_STATUS.get(after, "bold"))


class TasksView:
    """Many tasks: a line each, two on a narrow terminal."""

    def __init__(self, tasks: Sequence[TaskShown], *, now: datetime) -> None:
        self._tasks, self._now = tasks, now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Columns that are read from left to right: which, how it stands, how old, how long yet, what and whose."""
        wide = options.max_width >= WIDE
        head = _columns("task", "status", "created", "handle")
        yield Text(head + ("tool and creator" if wide else ""), style="bold")
        for task in self._tasks:
            line = Text(
                _columns(printable(task.task_ref), printable(task.status), *self._times(task)),
                no_wrap=True,
                overflow="ellipsis",
            )
            line.stylize(_STATUS.get(task.status, ""), _REF_LENGTH, _REF_LENGTH + _STATUS_LENGTH)
            if wide:
                yield line.append(_tool_and_creator(task))
            else:
                yield line
                yield Padding(Text(_tool_and_creator(task), style=_QUIET), (0, 0, 0, 2))

    def _times(self, task: TaskShown) -> tuple[str, str]:
        created, ends = moment(task.created_at), moment(task.expires_at)
        age = f"{lasted(self._now - created, precise=False)} ago" if created else ""
        if task.expired_at or ends is None:
            return age, "expired"
        if task.revoked_at:
            return age, "revoked"
        return age, f"{lasted(ends - self._now, precise=False)} left" if ends > self._now else "time is up"


def _columns(ref: str, status: str, created: str, handle: str) -> str:
    return f"{ref:<{_REF_LENGTH}}  {status:<{_STATUS_LENGTH}}  {created:>12}  {handle:<14}  "


def _tool_and_creator(task: TaskShown) -> str:
    made = task.creator
    name = printable(made.sub or "anonymous") + (f" at {issuer(made.iss)}" if made.iss else "")
    fault = "TOOL ERROR, " if task.is_error else ""
    return f"{fault}{printable(task.tool)} on {printable(task.server)}, {name}"


class TailView:
    """One step of the live tail, of whichever task, and below it whose and who."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The step, then the task's reference and the caller."""
        step = self._step
        mark, _, style = _MARKS[step.kind]
        body = _what(step)
        if change := _change(step):
            body.append("  ").append_text(change)
        said = [printable(step.task_ref or ""), who(step.who), *(evidence(step.who) if step.who else ())]
        said.append(STANDINGS.get(step.standing or "", ""))
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(justify="right", no_wrap=True, min_width=12)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, overflow="fold")
        grid.add_row(Text(clock(happened(step))), Text(mark, style=style), body)
        for sign, remark in remarks(step):
            grid.add_row(Text(), Text(sign, style=_LOUD), Text(remark, style="bold red" if sign else _QUIET))
        grid.add_row(
            Text(f"#{step.stream_seq}", style=_QUIET), Text(), Text(" · ".join(filter(None, said)), style=_QUIET)
        )
        yield grid
