"""Adapters that MCP servers import. They bring no service machinery with them."""
