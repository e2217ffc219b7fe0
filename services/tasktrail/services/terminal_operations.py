"""The commands of operators: `revoke`, `lift`, `handles`, `cancel`, `grant`, `hold` and `policy`, over Typer.

Guarantees: as `terminal.py`: a foreseen failure is one line on standard error and an exit code; with `--json`, standard
output holds the document and nothing else. A token to revoke is read from standard input, never from the command line,
and `--as FILE` names the operator's own. All but `policy check` ask a running service. `register` adds them to an app.

    register(app)
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

import typer

from tasktrail.events.authority import BindingMode
from tasktrail.services import orders
from tasktrail.services.cli import EXIT_NOT_FOUND, complain
from tasktrail.services.rendering import show
from tasktrail.services.rendering_handles import HandlesView, RevocationsView
from tasktrail.services.terminal_policy import policy
from tasktrail.services.terminal_service import (
    As,
    Case,
    Data,
    Json,
    Reason,
    Url,
    console,
    one_of,
    ordered,
    print_json,
    say,
    secret,
    service_as,
    task_of,
    tell,
    told,
    words,
)

Tenant = Annotated[str, typer.Option("--tenant", help="Only this tenant's; default every tenant.")]
Task = Annotated[str, typer.Argument(help="A task's reference or id; - reads it from standard input.")]

_MEANT = {
    "principal": "Was somebody else meant? `tasktrail query by_principal sub=…` shows whether the trail has the name",
    "client": "Was another one meant? `tasktrail query by_client client_id=…` shows whether the trail has the name",
    "token": "Was another one meant? `tasktrail query by_token token=…` shows whether it was ever used",
}
"""What to look at when a revocation concerns nothing: by its kind."""

revoke = typer.Typer(help="Refuse somebody, or a handle, from now on.", no_args_is_help=True)
grant = typer.Typer(help="Let somebody else use a handle, or end that.", no_args_is_help=True)
hold = typer.Typer(help="Keep a task's payloads, or end that.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.add_typer(revoke, name="revoke")
    app.command()(lift)
    app.command()(handles)
    app.command()(cancel)
    app.add_typer(grant, name="grant")
    app.add_typer(hold, name="hold")
    app.add_typer(policy, name="policy")


@revoke.command()
def principal(  # noqa: PLR0913 - one for each option
    *,
    sub: Annotated[str, typer.Option(help="The subject, as its issuer names it.")],
    reason: Reason,
    iss: Annotated[str, typer.Option(help="The subject's issuer; without, give the tenant.")] = "",
    tenant: Tenant = "",
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Refuse a principal: its calls, its subscriptions, and the work of its live tasks."""
    members = {"kind": "principal", "iss": iss, "sub": sub, "tenant": tenant}
    _revoke(members, reason, case, data, url, as_file, as_json=as_json)


@revoke.command()
def client(  # noqa: PLR0913 - one for each option
    client_id: Annotated[str, typer.Argument(help="The OAuth client's id.")],
    *,
    reason: Reason,
    iss: Annotated[str, typer.Option(help="Only with subjects of this issuer.")] = "",
    tenant: Tenant = "",
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Refuse a client, whoever acts through it."""
    members = {"kind": "client", "client_id": client_id, "iss": iss, "tenant": tenant}
    _revoke(members, reason, case, data, url, as_file, as_json=as_json)


@revoke.command()
def token(  # noqa: PLR0913 - one for each option
    *,
    reason: Reason,
    token_hash: Annotated[
        str, typer.Option("--hash", help="Its base64url SHA-256 instead, as timelines show it.")
    ] = "",
    jti: Annotated[str, typer.Option(help="Its id instead, with --iss.")] = "",
    iss: Annotated[str, typer.Option(help="Its issuer, with --jti.")] = "",
    tenant: Tenant = "",
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Refuse one token, which is read from standard input unless --hash or --jti names it."""
    with told():
        text = "" if token_hash or jti else secret()
    members = {"kind": "token", "token": text, "token_hash": token_hash, "jti": jti, "iss": iss, "tenant": tenant}
    _revoke(members, reason, case, data, url, as_file, as_json=as_json)


@revoke.command()
def handle(  # noqa: PLR0913 - one for each option
    task: Task,
    *,
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Take a handle back: it opens nothing any more, and its work is told to stop."""
    with told():
        asked = task_of(task)
    _revoke({"kind": "handle", "task": asked}, reason, case, data, url, as_file, as_json=as_json)


@revoke.command("list")
def revocations(
    *, case: Case = "", as_json: Json = False, data: Data = None, url: Url = "", as_file: As = None
) -> None:
    """List the revocations that hold."""
    with service_as(data, url, as_file, case) as service:
        found = service.ask("/revocations", list[orders.RevocationShown])
        if as_json:
            print_json(found)
        elif found:
            show(console(), RevocationsView(found))
        else:
            complain("no revocation holds")


def _revoke(  # noqa: PLR0913, PLR0917 - what all its commands have
    members: dict[str, str],
    reason: str,
    case: str,
    data: Path | None,
    url: str,
    as_file: Path | None,
    *,
    as_json: bool,
) -> None:
    with service_as(data, url, as_file) as service:
        order = ordered(orders.RevokeOrder, **members, reason=reason, case_id=case)
        done = service.order("/revocations", order, orders.Revoked)
        if as_json:
            print_json(done)
        elif done.became is not None:
            say(f"handle of {done.became.task}: {done.became.outcome}")
        elif not done.entry:
            say(f"revocation {done.revocation} names them already; nothing was recorded")
        else:
            say(f"revoked; {done.tasks} handles are concerned. To end it: tasktrail lift {done.revocation} --reason …")
            if not done.tasks:
                complain(f"no handle is theirs now; whoever comes by this from now on is refused. {_MEANT[done.kind]}")


def lift(  # noqa: PLR0913 - one for each option
    revocation: Annotated[str, typer.Argument(help="The revocation's id; `revoke list` shows it.")],
    *,
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """End a revocation. Handles revoked and tasks stopped in its wake stay so."""
    with service_as(data, url, as_file) as service:
        order = ordered(orders.LiftOrder, revocation=revocation, reason=reason, case_id=case)
        done = service.order("/revocations/lift", order, orders.Lifted)
        tell(done, f"revocation {done.revocation} does not hold any more", as_json=as_json)


def handles(  # noqa: PLR0913 - one for each filter
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    server: Annotated[str | None, typer.Option(help="Only of this MCP server.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only of this tool.")] = None,
    iss: Annotated[str | None, typer.Option(help="Only of subjects of this issuer.")] = None,
    sub: Annotated[str | None, typer.Option(help="Only of this subject.")] = None,
    client_id: Annotated[str | None, typer.Option(help="Only through this OAuth client.")] = None,
    live: Annotated[
        bool | None, typer.Option("--live/--ended", help="Only those whose task can still change, or not.")
    ] = None,
    lapsed: Annotated[
        bool | None, typer.Option("--lapsed/--standing", help="Only those whose creator's authority has ended, or not.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=orders.TASKS_MAX)] = 100,
    refs: Annotated[bool, typer.Option("--refs", help="Print references alone, one a line: for `cancel -`.")] = False,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """List the handles that still open something, the newest first."""
    with service_as(data, url, as_file, case) as service:
        wanted = {"tenant": tenant, "server": server, "tool": tool, "iss": iss, "sub": sub, "client_id": client_id}
        found = service.ask("/handles", list[orders.HandleShown], **wanted, live=live, lapsed=lapsed, limit=limit)
        if as_json:
            print_json(found)
            return
        if not found:
            complain("no handle matches")
            return
        if refs:
            for one in found:
                say(one.task_ref)
        else:
            show(console(), HandlesView(found, now=datetime.now(UTC)))
        if len(found) == limit:
            complain(f"there may be more: --limit {orders.TASKS_MAX} at most, or filter")


def cancel(  # noqa: PLR0913 - one for each option
    tasks: Annotated[list[str], typer.Argument(help="References or ids of tasks; - reads them from standard input.")],
    *,
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Stop tasks; says what became of each, with the entry that proves it. Exit code 1 unless all were accepted."""
    with told():
        asked = words("task", nothing=True) if tasks == ["-"] else tasks
    if not asked:
        complain("nothing to cancel: standard input names no task")
        if as_json:
            print_json([])
        return
    with service_as(data, url, as_file) as service:
        order = ordered(orders.CancelOrder, tasks=asked, reason=reason, case_id=case)
        became = service.order("/handles/cancel", order, list[orders.Became])
        if as_json:
            print_json(became)
        else:
            for number, one in enumerate(became, start=1):
                say("  ".join(filter(None, (one.task or f"the {number}. task", one.outcome, one.reason, one.entry))))
    if any(one.outcome != "accepted" for one in became):
        raise typer.Exit(EXIT_NOT_FOUND)


@grant.command("give")
def give_grant(  # noqa: PLR0913 - one for each option
    task: Task,
    *,
    right: Annotated[list[str], typer.Option(help=f"{', '.join(get_args(orders.Right))}; may be repeated.")],
    reason: Reason,
    iss: Annotated[str, typer.Option(help="The grantee's issuer.")] = "",
    sub: Annotated[str, typer.Option(help="The grantee, as that issuer names it.")] = "",
    client_id: Annotated[str, typer.Option(help="Through this OAuth client.")] = "",
    tenant: Annotated[str, typer.Option(help="The grantee's tenant; default the task's.")] = "",
    mode: Annotated[
        str, typer.Option(help=f"What of the grantee is compared: {', '.join(BindingMode)}.")
    ] = BindingMode.EXACT.value,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%SZ"], help="In UTC; default the handle's own end.")
    ] = None,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Let somebody else than its creator use a handle."""
    with service_as(data, url, as_file) as service:
        order = ordered(
            orders.GrantOrder,
            task=task_of(task),
            tenant=tenant,
            iss=iss,
            sub=sub,
            client_id=client_id,
            mode=one_of("--mode", mode, BindingMode),
            rights=right,
            until_ms=int(until.replace(tzinfo=UTC).timestamp() * 1000) if until else 0,
            reason=reason,
            case_id=case,
        )
        done = service.order("/grants", order, orders.Governed)
        tell(done, f"granted: {done.id} of task {done.task_ref}", as_json=as_json)


@grant.command("withdraw")
def withdraw_grant(  # noqa: PLR0913 - one for each option
    task: Task,
    grant_id: Annotated[str, typer.Argument(metavar="GRANT", help="The grant's id; `handles` shows it.")],
    *,
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """End a grant."""
    with service_as(data, url, as_file) as service:
        order = ordered(orders.WithdrawOrder, task=task_of(task), grant=grant_id, reason=reason, case_id=case)
        done = service.order("/grants/withdraw", order, orders.Governed)
        tell(done, f"withdrawn: {done.id} of task {done.task_ref}", as_json=as_json)


@hold.command("place")
def place_hold(  # noqa: PLR0913 - one for each option
    task: Task,
    *,
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Keep a task's payloads, whatever their retention says."""
    with service_as(data, url, as_file) as service:
        order = ordered(orders.HoldOrder, task=task_of(task), reason=reason, case_id=case)
        done = service.order("/holds", order, orders.Governed)
        how = f"another operator releases it: tasktrail hold release {done.task_ref} {done.id} --reason …"
        tell(done, f"held; {how}", as_json=as_json)


@hold.command("release")
def release_hold(  # noqa: PLR0913 - one for each option
    task: Task,
    hold_id: Annotated[str, typer.Argument(metavar="HOLD", help="The hold's id; the timeline shows it.")],
    *,
    reason: Reason,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """End a hold that another operator placed."""
    with service_as(data, url, as_file) as service:
        order = ordered(orders.ReleaseOrder, task=task_of(task), hold=hold_id, reason=reason, case_id=case)
        done = service.order("/holds/release", order, orders.Governed)
        tell(done, f"released: {done.id} of task {done.task_ref}", as_json=as_json)
