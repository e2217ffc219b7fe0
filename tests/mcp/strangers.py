"""Requests of those who are turned away: identifiers that open nothing, and the answers as a stranger compares them."""

import json
from typing import Any

from .client import Client

UNKNOWN = "a" * 32
METHODS = ("tasks/get", "tasks/update", "tasks/cancel")
MALFORMED: dict[str, Any] = {
    "too short": "a",
    "upper case": "A" * 32,
    "another server's form": "786512e2-9e0d-44bd-8f29-789f320fe840",
    "empty": "",
    "NUL": "a" * 31 + "\0",
    "lone surrogate": "a" * 31 + "\ud800",
    "wildcard": "*",
    "full wildcard": ">",
    "token separator": ".",
    "line break": "a\r\nPUB x 1\r\n",
    "space": "a b",
    "huge": "a" * 300_000,
    "number": 5,
    "float": 1.5,
    "null": None,
    "true": True,
    "array": [UNKNOWN],
    "object": {"taskId": UNKNOWN},
    "deep": json.loads("[" * 200 + "]" * 200),
}


async def ask(client: Client, method: str, task_id: object, name: str | None = None) -> tuple[int, bytes]:
    """The answer to one of the three requests, as a stranger could compare it."""
    params: dict[str, Any] = {"taskId": task_id}
    if method == "tasks/update":
        params["inputResponses"] = {"x": {"action": "accept"}}
    return (await client.send(method, params, name=name)).refusal
