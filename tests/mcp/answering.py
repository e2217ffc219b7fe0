"""Questions of a running task as its client finds them, and its answers."""

from typing import Any

from tasktrail.testing.waiting import until

from .client import Client


def accept(**content: object) -> dict[str, Any]:
    """An accepted elicitation."""
    return {"action": "accept", "content": content}


async def asked(client: Client, task_id: str, count: int = 1) -> dict[str, Any]:
    """The outstanding requests, once there are so many."""

    async def look() -> dict[str, Any] | None:
        task = await client.until(task_id, "input_required", "completed", "failed")
        assert task["status"] == "input_required", task
        requests: dict[str, Any] = task["inputRequests"]
        return requests if len(requests) == count else None

    return await until(look, what=f"{count} requests for input")


async def text_of(client: Client, task_id: str) -> str:
    """The text of the result."""
    task = await client.until(task_id, "completed")
    text: str = task["result"]["content"][0]["text"]
    return text
