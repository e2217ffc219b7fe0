"""The command line: `tasktrail up | init | demo | timeline | tasks | tail`.

Guarantees: with `--json`, standard output holds the document and nothing else; what a person should know besides goes
to standard error, one line each, beginning with `tasktrail:`. Exit codes: 0 done, 1 not found or an expectation that
did not hold, 2 a wrong command, directory or installation, 3 the service or the store cannot answer now, 130
interrupted. Needs the extra `service`, and says so when it is missing.

    tasktrail up --demo
    tasktrail tasks --status input_required
    tasktrail timeline - < task-id.txt
"""

import io
import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

EXIT_OK, EXIT_NOT_FOUND, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


def main() -> NoReturn:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        import_module("tasktrail.services.terminal").app(prog_name="tasktrail")
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name == "tasktrail":
            raise
        extra = f"service,{name}" if name in {"mcp", "fastmcp"} else "service"
        complain(f"{name} is not installed; run: pip install 'tasktrail[{extra}]'")
        sys.exit(EXIT_USAGE)
    except BrokenPipeError:
        # Whoever read our output has had enough; without this, flushing at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OK)
    sys.exit(EXIT_OK)


def complain(message: str) -> None:
    """One message for the person, on standard error. What is not printable, others may have written it, is escaped."""
    shown = "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in message)
    sys.stderr.write(f"tasktrail: {shown}\n")


def says_version() -> str:
    """The installed version."""
    return version("tasktrail")


if __name__ == "__main__":
    main()
