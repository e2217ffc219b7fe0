"""What the commands of operators have in common: their options, the service they ask, and what they print.

Guarantees: as `terminal.py`: a foreseen failure is one line on standard error and an exit code.

    with service_as(data, url, as_file) as service:
        tell(service.order("/holds", ordered(HoldOrder, …), Governed), "held", as_json=False)
"""

import contextlib
import getpass
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import typer
from rich.console import Console

from tasktrail.events.errors import InvalidRequest, TasktrailError, Unavailable
from tasktrail.projections.audit.sentences import printable
from tasktrail.services.broker import BrokerError
from tasktrail.services.cli import EXIT_INTERRUPTED, EXIT_NOT_FOUND, EXIT_UNAVAILABLE, EXIT_USAGE, complain
from tasktrail.services.mistakes import mistake, not_one_of
from tasktrail.services.orders import NoSuchTask
from tasktrail.services.questions import NoSuchTenant
from tasktrail.services.settings import load
from tasktrail.services.sources import NO_TEXT, NotDone, ServiceSource, encoded, open_service

STDIN_BYTES_MAX = 256 * 1024

T = TypeVar("T", bound=msgspec.Struct)

Data = Annotated[
    Path | None,
    typer.Option("--data", help="Data directory; default TASKTRAIL_DATA or .tasktrail.", show_default=False),
]
Url = Annotated[str, typer.Option("--url", help="Ask the service at this address instead.")]
As = Annotated[
    Path | None,
    typer.Option("--as", help="File with your operator's token; default the data directory's.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the document and nothing else.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, in words for the trail; at least 3 characters.")]
Case = Annotated[str, typer.Option("--case", envvar="TASKTRAIL_CASE", help="The case it belongs to.", show_envvar=True)]


def ordered(kind: type[T], /, **members: object) -> T:
    """An order, checked as the service will check it: its members are named as the options are."""
    try:
        order = msgspec.convert(members, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(mistake(error, kind, members)) from None
    encoded(order)
    return order


def one_of(option: str, said: str, allowed: Iterable[str]) -> str:
    """What was said, which is one of these words. Raises InvalidRequest."""
    if said in (words_ := tuple(allowed)):
        return said
    raise InvalidRequest(not_one_of(option, said, words_))


def task_of(task: str) -> str:
    """The task an argument names; `-` is the one word on standard input."""
    return word("task id or reference") if task == "-" else task


def word(what: str) -> str:
    """The one word on standard input."""
    found = words(what)
    if len(found) != 1:
        message = f"standard input holds {len(found)} words; give one {what}"
        raise InvalidRequest(message)
    return found[0]


def secret() -> str:
    """A token from standard input; from a person at a terminal, without showing it."""
    return getpass.getpass("token to revoke: ").strip() if sys.stdin.isatty() else word("token")


def words(what: str, *, nothing: bool = False) -> Sequence[str]:
    """The words on standard input, at least one unless there may be `nothing`."""
    source = sys.stdin.buffer
    said = (source.readline if source.isatty() else source.read)(STDIN_BYTES_MAX + 1)
    found = said.decode("utf-8", "replace").split()
    if len(said) > STDIN_BYTES_MAX:
        message = f"standard input holds more than {STDIN_BYTES_MAX // 1024} KiB; give a {what} in it"
        raise InvalidRequest(message)
    if not found and not nothing:
        message = f"standard input holds no {what}; nothing was done"
        raise InvalidRequest(message)
    return found


def text_of(file: Path) -> str:
    """The text of a file."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {file}: {getattr(error, 'strerror', '') or 'it is no UTF-8 text'}"
        raise InvalidRequest(message) from None


@contextlib.contextmanager
def service_as(data: Path | None, url: str, as_file: Path | None, case: str = "") -> Generator[ServiceSource]:
    """The running service, as the operator with this token, in this case."""
    with told(), open_service(load(os.environ, data=data).data, url, as_file, case) as service:
        yield service


@contextlib.contextmanager
def told() -> Generator[None]:
    """Foreseen failures as one line and an exit code."""
    try:
        yield
    except Unavailable as error:
        complain(error.message)
        raise typer.Exit(EXIT_UNAVAILABLE) from None
    except BrokerError as error:
        complain(str(error))
        raise typer.Exit(EXIT_UNAVAILABLE) from None
    except (NotDone, NoSuchTask, NoSuchTenant) as error:
        complain(error.message)
        raise typer.Exit(EXIT_NOT_FOUND) from None
    except TasktrailError as error:
        complain(error.message)
        raise typer.Exit(EXIT_USAGE) from None
    except UnicodeEncodeError:
        complain(NO_TEXT)
        raise typer.Exit(EXIT_USAGE) from None
    except OSError as error:
        if error.errno is None or isinstance(error, BrokenPipeError):  # not the system's, or `cli.main` ends quietly
            raise
        where = f" {error.filename}" if error.filename else ""
        complain(f"cannot read or write{where}: {error.strerror}")
        raise typer.Exit(EXIT_USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def console() -> Console:
    """Standard output."""
    return Console(highlight=False, markup=False, emoji=False)


def tell(done: msgspec.Struct, said: str, *, as_json: bool) -> None:
    """The document, or what it says."""
    if as_json:
        print_json(done)
    else:
        say(said)


def say(line: str) -> None:
    """One line on standard output; whatever is not printable in it as its escape."""
    sys.stdout.write("".join(map(printable, line)) + "\n")  # one by one: a whole line would be shortened


def print_json(document: object) -> None:
    """The document, and nothing else."""
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    sys.stdout.buffer.flush()
