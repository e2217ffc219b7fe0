"""The 2025-11-25 wire, for the official MCP Python SDK v1: the parts of `tasktrail.mcp.task_store`."""
