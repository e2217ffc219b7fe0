"""`tasktrail unseal`: read what a task's entries keep sealed, over Typer.

Guarantees: as `terminal.py`; only a running service can unseal, and records it first. Standard output holds one JSON
document and nothing else, in which every character that does not print is an escape, so that a payload cannot speak to
the terminal. `register` adds it to an app.

    tasktrail unseal k5x… --payload result --reason "what did it disclose?" --case INC-7
"""

import json
import sys
from typing import Annotated

import msgspec
import typer

from tasktrail.services.cli import EXIT_NOT_FOUND, complain
from tasktrail.services.escaping import plain, visible
from tasktrail.services.statements import Unsealed, UnsealOrder
from tasktrail.services.terminal_service import As, Case, Data, Reason, Url, ordered, service_as, task_of

WITHIN_S = 120.0


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(unseal)


def unseal(  # noqa: PLR0913 - one for each option
    task: Annotated[str, typer.Argument(help="A task's reference or id; - reads it from standard input.")],
    *,
    payload: Annotated[
        list[str] | None, typer.Option(help="Only the payload of this name, such as result; may be repeated.")
    ] = None,
    reason: Reason,
    case: Case = "",
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Read sealed payloads of a task; recorded with your name and reason first. The handle only when it is named."""
    with service_as(data, url, as_file, case) as service:
        order = ordered(UnsealOrder, task=task_of(task), payloads=payload or [], reason=reason, case_id=case)
        done = service.order("/unseal", order, Unsealed, WITHIN_S)
        document = json.dumps(msgspec.to_builtins(done), ensure_ascii=True, indent=2, default=plain)
        sys.stdout.write(document.replace("\x7f", "\\u007f") + "\n")
        sys.stdout.flush()
    for one in done.payloads:
        if one.problem:
            complain(f"{visible(one.name)} cannot be shown: {visible(one.problem)}")
        elif one.flags:
            complain(f"{visible(one.name)} shows secrets: {', '.join(one.flags)}")
    if any(one.problem for one in done.payloads):
        raise typer.Exit(EXIT_NOT_FOUND)
