"""The demonstration: a real service, a real MCP server with bearer tokens, real clients, and what the trail says after.

`python -m tasktrail.demo run` plays every scenario once and checks it; `serve` is the MCP server with gentle traffic
that `tasktrail up --demo` starts. Both need the extras `service` and `mcp`.
"""
