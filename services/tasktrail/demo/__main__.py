"""`python -m tasktrail.demo run | serve`: what `tasktrail demo` and `tasktrail up --demo` start.

python -m tasktrail.demo run [--data DIR] [--json]
python -m tasktrail.demo serve --connect <data>/adapter.json [--data DIR] [--port N] [--every S]
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Read the command line and do it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tasktrail demo", description="See what tasktrail does.")
    commands = parser.add_subparsers(dest="command", required=True)
    once = commands.add_parser("run", help="every scenario once, checked; exit code 0 only if every expectation held")
    once.add_argument("--data", type=Path, help="keep the trail in this directory")
    once.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    serving = commands.add_parser("serve", help="an MCP server with gentle traffic, until stopped")
    serving.add_argument("--connect", required=True, help="adapter.json of a running tasktrail, or nats:// URLs")
    serving.add_argument("--data", type=Path, help="the service's data directory, for the commands shown")
    serving.add_argument("--port", type=int, default=0, help="port of the MCP server; default: a free one")
    serving.add_argument("--every", type=float, default=4.0, help="seconds between two tasks")
    said = parser.parse_args()
    if said.command == "run":
        from tasktrail.demo import story  # noqa: PLC0415 - light: the service starts while the rest is imported

        return story.run(said.data, json=said.json)
    from tasktrail.demo import traffic  # noqa: PLC0415 - brings the MCP SDK

    return traffic.serve(said.connect, data=said.data, port=said.port, every_s=said.every)


if __name__ == "__main__":
    sys.exit(main())
