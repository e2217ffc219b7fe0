"""`tasktrail bundle export | verify`: evidence taken out of a running service, and checked anywhere, over Typer.

Guarantees: as `terminal.py`; a bundle is written whole, with mode 0600, and never over a file that is there; what was
written has the SHA-256 that is on the trail. `verify` needs no service and no data directory, and is the `verify.py` of
every bundle: the same verdicts, the same exit codes. `register` adds both to an app.

    tasktrail bundle export --task k5x… --reason "a court asks" --case C-7 --out evidence.tar
    tasktrail bundle verify evidence.tar --key 'NAME+HASH+KEY'
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import httpx
import msgspec
import typer

from tasktrail.events.errors import InvalidRequest
from tasktrail.projections.tlog.offline import EXIT, checked, show
from tasktrail.projections.tlog.offline_checks import Bad, printable, read_json, unpacked
from tasktrail.services.bundle_orders import COUNT_HEADER, ENTRY_HEADER, SHA256_HEADER, SIZE_HEADER, BundleOrder
from tasktrail.services.cli import EXIT_USAGE, complain
from tasktrail.services.sources import CONNECT_WITHIN_S, ServiceSource, Unreachable, encoded
from tasktrail.services.terminal_service import (
    As,
    Case,
    Data,
    Json,
    Reason,
    Url,
    ordered,
    print_json,
    say,
    service_as,
    told,
)
from tasktrail.services.terminal_service import task_of as read_task
from tasktrail.services.whole_files import whole_file

WITHIN_S = 600.0

bundle = typer.Typer(help="Take evidence out, or check some.", no_args_is_help=True)


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle as it was written: `entry` is the id of the entry that says so, with this SHA-256."""

    file: str
    sha256: str
    entry: str
    entries: int
    tree_size: int


def register(app: typer.Typer) -> None:
    """Add these commands to `app`."""
    app.add_typer(bundle, name="bundle")


@bundle.command()
def export(  # noqa: PLR0913 - one for each option
    *,
    out: Annotated[Path, typer.Option(help="The file to write; one that is there is not overwritten.")],
    reason: Reason,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A task's reference or id, - reads it from standard input; may be repeated."),
    ] = None,
    principal: Annotated[str, typer.Option(help="Everything by this subject, and its tasks.")] = "",
    iss: Annotated[str, typer.Option(help="Only of this issuer, with --principal.")] = "",
    client_id: Annotated[str, typer.Option(help="Only through this OAuth client, with --principal.")] = "",
    tenant: Annotated[str, typer.Option(help="Only this tenant's, with --principal.")] = "",
    since: Annotated[str, typer.Option("--from", help="Everything recorded from this time on, RFC 3339.")] = "",
    until: Annotated[str, typer.Option("--to", help="And before this time.")] = "",
    from_seq: Annotated[int | None, typer.Option(min=1, help="Everything from this sequence on.")] = None,
    to_seq: Annotated[int | None, typer.Option(min=1, help="And up to this one.")] = None,
    query: Annotated[str, typer.Option(help="The entries that this named query finds.")] = "",
    param: Annotated[list[str] | None, typer.Option(help="name=value of the query; may be repeated.")] = None,
    holding: Annotated[
        list[int] | None, typer.Option(min=1, help="Size of a checkpoint the receiver has; may be repeated.")
    ] = None,
    case: Case = "",
    as_json: Json = False,
    data: Data = None,
    url: Url = "",
    as_file: As = None,
) -> None:
    """Write entries with everything that proves them to a file. Recorded on the trail; payloads stay sealed."""
    with service_as(data, url, as_file, case) as service:
        kinds = {
            "task": task,
            "principal": principal,
            "time": since or until,
            "sequence": from_seq or to_seq,
            "query": query,
        }
        members: dict[str, object] = {
            "tasks": tuple(read_task(one) for one in task or ()),
            "sub": principal,
            "iss": iss,
            "client_id": client_id,
            "tenant": tenant,
            "since": _time("--from", since),
            "until": _time("--to", until),
            "first": from_seq,
            "last": to_seq,
            "query": query,
            "parameters": _parameters(param or []),
            "holding": tuple(holding or ()),
            "reason": reason,
            "case_id": case,
        }
        order = ordered(BundleOrder, kind=_kind(kinds), **members)
        order.require_scope()
        with whole_file(out) as file:
            taken = _Bundles(service).take(order)
            file.write(taken.data)
    note = read_json(unpacked(taken.data)["custody.json"]).get("note")
    if note:
        complain(printable(str(note)))
    written = Written(
        file=str(out), sha256=taken.sha256, entry=taken.entry, entries=taken.entries, tree_size=taken.tree_size
    )
    if as_json:
        print_json(written)
        return
    say(f"{out}: {written.entries} entries, proved by the checkpoint of size {written.tree_size}")
    say(f"sha256 {written.sha256}, on the trail as entry {written.entry}")


@bundle.command()
def verify(
    file: Annotated[Path, typer.Argument(help="The bundle.")],
    *,
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="Public key of the checkpoints, NAME+HASH+KEY or a file with it; not the bundle's own. "
            "May be repeated: each is trusted."
        ),
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option(help="Public key of a witness that must have cosigned; may be repeated.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="File with a checkpoint that you hold; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a bundle; needs no service: for each entry PROVEN, ASSERTED, REFUSED, MISSING or FAILED."""
    with told():
        for option, said in (*(("--key", one) for one in key or ()), *(("--witness", one) for one in witness or ())):
            _require_key(option, said)
        for path in checkpoint or ():
            _require_file("--checkpoint", path, "a file with one checkpoint")
        _require_file("FILE", file, "a bundle, which `tasktrail bundle export` writes")
    try:
        report = checked(file, key or [], witness or [], checkpoint or [])
    except (Bad, OSError, ValueError) as why:
        complain(printable(str(why)))
        raise typer.Exit(EXIT_USAGE) from None
    show(report, as_json=as_json)
    raise typer.Exit(EXIT[report["verdict"]])


def _require_key(option: str, said: str) -> None:
    """See that this may be a key. Raises InvalidRequest."""
    if said.count("+") > 1 or Path(said).is_file():
        return
    message = f"{option} {said[:100]} is neither a public key, NAME+HASH+KEY, nor a file with one"
    raise InvalidRequest(message)


def _require_file(option: str, path: Path, what: str) -> None:
    """See that this is a file. Raises InvalidRequest."""
    if path.is_file():
        return
    why = "is a directory" if path.is_dir() else "is not there" if not path.exists() else "is no plain file"
    message = f"{path} {why}; {option} names {what}"
    raise InvalidRequest(message)


class _Taken(NamedTuple):
    data: bytes
    sha256: str
    entry: str
    entries: int
    tree_size: int


class _Bundles(ServiceSource):
    """A running service: the same connection as `service`, which stays its owner."""

    def __init__(self, service: ServiceSource) -> None:
        self._url, self._token_file, self._client = service._url, service._token_file, service._client  # noqa: SLF001 - the same class

    def take(self, order: BundleOrder) -> _Taken:
        """The bundle that the service makes. Raises as `ServiceSource.order`."""
        answer = self._ask(
            "POST",
            "/api/v1/bundles",
            content=encoded(order),
            headers={"Content-Type": "application/json"},
            timeout=httpx.Timeout(WITHIN_S, connect=CONNECT_WITHIN_S),
        )
        if not answer.is_success:
            raise self._refusal(answer)
        said = [answer.headers.get(name, "") for name in (SHA256_HEADER, ENTRY_HEADER, COUNT_HEADER, SIZE_HEADER)]
        if said[0] != hashlib.sha256(answer.content).hexdigest():
            message = f"the bundle from {self._url} did not arrive as it was made; nothing was kept. Try again"
            raise Unreachable(message)
        return _Taken(answer.content, said[0], said[1], int(said[2]), int(said[3]))


def _kind(kinds: Mapping[str, object]) -> str:
    given = [kind for kind, value in kinds.items() if value]
    if len(given) != 1:
        message = (
            "say what to prove, in one way: --task, --principal, --from and --to, --from-seq and --to-seq, or --query"
        )
        raise InvalidRequest(message)
    return given[0]


def _time(option: str, text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text) if text else None
    except ValueError:
        message = f"{option} is {text!r:.60}; write it like 2026-11-22T18:00:00Z"
        raise InvalidRequest(message) from None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _parameters(said: list[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for one in said:
        name, equals, value = one.partition("=")
        if not equals or not name or name in parameters:
            message = f"--param {name[:64]!r}: give each as name=value, once"
            raise InvalidRequest(message)
        parameters[name] = value
    return parameters
