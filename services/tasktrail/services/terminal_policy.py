"""The commands about the policy: `policy check | activate | show | explain`, over Typer.

Guarantees: as `terminal_operations.py`. `check` needs no service. `show` writes the very text, so that it can be
changed and activated; to a terminal only what is printable of it.

    app.add_typer(policy, name="policy")
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, cast

import typer

from tasktrail.projections.audit.sentences import printable
from tasktrail.services import orders
from tasktrail.services.cli import EXIT_NOT_FOUND, complain
from tasktrail.services.rendering import show
from tasktrail.services.rendering_handles import ExplainedView
from tasktrail.services.terminal_service import (
    As,
    Case,
    Data,
    Json,
    Reason,
    Url,
    console,
    ordered,
    print_json,
    say,
    service_as,
    tell,
    text_of,
    told,
)

policy = typer.Typer(help="Check, activate and look at policies, and explain decisions.", no_args_is_help=True)


@policy.command("check")
def check_policy(file: Annotated[Path, typer.Argument(help="A Cedar policy.", show_default=False)]) -> None:
    """Print every problem of a policy; needs no service."""
    with told():
        problems = cast("list[str]", import_module("tasktrail.services.access.policy").check(text_of(file)))
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(EXIT_NOT_FOUND)
    say(f"{file}: no problem found")


@policy.command("activate")
def activate_policy(  # noqa: PLR0913 - one for each option
    file: Annotated[Path, typer.Argument(help="A Cedar policy.", show_default=False)],
    *,
    version: Annotated[str, typer.Option(help="What it is called in every decision from now on.")],
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Decide by this policy from now on. One that is not valid changes nothing."""
    with service_as(data, url, as_file) as service:
        order = ordered(orders.PolicyOrder, text=text_of(file), version=version, reason=reason, case_id=case)
        done = service.order("/policy", order, orders.Activated)
        tell(done, f"policy {done.version} ({done.sha256[:12]}) decides from now on", as_json=as_json)


@policy.command("show")
def show_policy(
    *, case: Case = "", as_json: Json = False, data: Data = None, url: Url = "", as_file: As = None
) -> None:
    """Print the policy that decides now."""
    with service_as(data, url, as_file, case) as service:
        now = service.ask("/policy", orders.PolicyShown)
        if as_json:
            print_json(now)
            return
        complain(f"policy {now.version}, SHA-256 {now.sha256}")
        sys.stdout.write(_shown(now.text) if sys.stdout.isatty() else now.text)


def _shown(text: str) -> str:
    """The text for a terminal, which others may have written: what is not printable as its escape."""
    return "".join(one if one in "\n\t" else printable(one) for one in text)


@policy.command("explain")
def explain_decision(  # noqa: PLR0913 - one for each option
    entry: Annotated[str, typer.Argument(help="The id of an entry, as `timeline --ids` shows it.")],
    *,
    today: Annotated[bool, typer.Option("--today", help="Under the policy of today, not the one of then.")] = False,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Make the decision of an entry again, from what it was made from. Exit code 1 when it comes out otherwise."""
    with service_as(data, url, as_file, case) as service:
        order = ordered(orders.ExplainOrder, entry=entry, today=today)
        found = service.order("/policy/explain", order, orders.Explained)
        if as_json:
            print_json(found)
        else:
            show(console(), ExplainedView(found))
    if not found.same:
        raise typer.Exit(EXIT_NOT_FOUND)
