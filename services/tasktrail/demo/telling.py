"""What a newcomer sees: who is there, what happened, who authorised each step, what had to hold, where to go next.

Guarantees: one screenful but for the timelines; nothing is told by colour alone; `Console(quiet=True)` says nothing.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tasktrail.demo.checks import Expectation, Played

_STYLES = {"completed": "green", "failed": "red", "cancelled": "magenta"}
_WIDTH_MAX = 120
_SEEN_MAX = 400


def console(*, quiet: bool) -> Console:
    """Where it is told."""
    made = Console(quiet=quiet, highlight=False)
    made.width = min(made.width, _WIDTH_MAX)
    return made


def title(out: Console) -> None:
    """At once, before anything has started."""
    out.print(Text("tasktrail demo", style="bold"), Text("— a real service, MCP server, tokens and clients"))


def opening(out: Console, *, service: str, mcp: str, issuers: Sequence[str], data: Path) -> None:
    """Who and what is there."""
    rows = (
        ("service", f"{service}, its trail in {data}"),
        ("MCP server", f"{mcp}, connected to it; needs a bearer token"),
        ("ana, bob", f"tenant acme, tokens of {issuers[0]}"),
        ("eve", f"tenant globex, tokens of {issuers[1]}"),
    )
    for name, what in rows:
        out.print(Text(f"  {name:<12}{what}"), soft_wrap=True)


def heading(out: Console, text: str) -> None:
    """A new part."""
    out.print()
    out.print(Text(text, style="bold"))


def played(out: Console, one: Played, *, held: bool, took_s: float) -> None:
    """One scenario, one line."""
    status = Text(f"{one.status:<10}", style=_STYLES.get(one.status, "yellow"))
    took = Text(f"{took_s:5.1f} s", style="dim")
    out.print(Text.assemble("  ", _mark(held=held), f" {one.scenario:<12}", status, " ", f"{one.line:<46}", took))


def closing(out: Console, found: Sequence[Expectation], *, took_s: float, data: Path | None) -> None:
    """What had to hold, whether it did, and where to go next. `data`: where the trail stays, if it does."""
    heading(out, "What had to hold")
    for one in found:
        out.print(Text.assemble("  ", _mark(held=one.held), f" {one.what}"))
        if not one.held:
            out.print(Text(f"    NOT SO; seen: {one.seen[:_SEEN_MAX]}", style="red"))
    held = sum(one.held for one in found)
    verdict = f"{held} of {len(found)} expectations held" if held < len(found) else f"all {held} expectations held"
    heading(out, f"{verdict}, in {took_s:.1f} s")
    if not held:
        return
    if data is None:
        rows = [
            ("tasktrail demo --data ./trail", "the same, and its trail stays for you to look at"),
            ("tasktrail up --demo", "a service that goes on, with traffic to watch"),
        ]
    else:
        rows = [
            (f"tasktrail tasks --data {data}", "the tasks just made"),
            (f"tasktrail up --demo --data {data}", "continue on this trail, with traffic to watch"),
        ]
    rows.append(("README.md", "ten lines that give your own MCP server tasks"))
    widest = max(len(command) for command, _ in rows)
    for command, why in rows:
        out.print(Text(f"  {command:<{widest}}  {why}"), soft_wrap=True)


def _mark(*, held: bool) -> Text:
    return Text("✓", style="green") if held else Text("✗", style="bold red")
