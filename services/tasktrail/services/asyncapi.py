"""What goes over NATS, as an AsyncAPI 3.0 document: every command with its answer, and the signals. Pure.

Guarantees: made from `messages.ACTIONS`, by which the service itself reads requests, so that it cannot say anything
else than the service does; the same bytes for the same version.

    document("0.3.0")["operations"]["create"]

Source: AsyncAPI specification 3.0.0, whose schemas are a superset of JSON Schema draft 07.
"""

import inspect
from typing import Any

import msgspec

from tasktrail.services.messages import ACTIONS, COMMANDS, SIGNALS, Failed, Signal

ASYNCAPI = "3.0.0"
_REF = "#/components/schemas/{name}"
_SERVER = {"$ref": "#/components/parameters/server"}


def document(version: str) -> dict[str, Any]:
    """The document of this version of the service.

    `tasktrail.cmd.{server}.{action}` is a subject each, answered on the request's own inbox by `{"ok": …}` or
    `{"error": …}`.
    """
    asked = {action: kinds[0] for action, kinds in ACTIONS.items()}
    answered = {action: kinds[1] for action, kinds in ACTIONS.items()}
    types = list(dict.fromkeys((*asked.values(), *answered.values(), Failed, Signal)))
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "tasktrail",
            "version": version,
            "description": "What MCP servers tell tasktrail of their tasks, and what they hear: NATS request/reply.",
        },
        "defaultContentType": "application/json",
        "channels": {**{action: _channel(action) for action in ACTIONS}, "answer": _inbox(), "signals": _signals()},
        "operations": {**{action: _operation(action) for action in ACTIONS}, "signalled": _signalled()},
        "components": {
            "schemas": schemas,
            "parameters": {
                "server": {
                    "description": "The MCP server's name as one token: letters, digits, `_` and `-` as they are; any "
                    "other name as `x-` and the lower-case base32 of its UTF-8, unpadded. A login is tied to it."
                },
                "task_ref": {"description": "The task's reference: 32 letters and digits."},
            },
            "messages": {
                **{f"{action}.request": _message(kind) for action, kind in asked.items()},
                **{f"{action}.answer": _answer(kind) for action, kind in answered.items()},
                "signal": _message(Signal),
            },
        },
    }


def _channel(action: str) -> dict[str, Any]:
    return {
        "address": f"{COMMANDS}.{{server}}.{action}",
        "parameters": {"server": _SERVER},
        "messages": {"request": {"$ref": f"#/components/messages/{action}.request"}},
    }


def _inbox() -> dict[str, Any]:
    """Where answers go: an inbox that the request names, `_INBOX` and tokens of letters, digits, `_` and `-`."""
    return {
        "address": None,
        "description": "The inbox that the request names to reply to (NATS request/reply).",
        "messages": {action: {"$ref": f"#/components/messages/{action}.answer"} for action in ACTIONS},
    }


def _signals() -> dict[str, Any]:
    return {
        "address": f"{SIGNALS}.{{server}}.{{task_ref}}",
        "description": "That a task of this server moved. Signals may be lost: they are a reason to ask.",
        "parameters": {"server": _SERVER, "task_ref": {"$ref": "#/components/parameters/task_ref"}},
        "messages": {"signal": {"$ref": "#/components/messages/signal"}},
    }


def _operation(action: str) -> dict[str, Any]:
    """What the service does: it receives the request and replies."""
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{action}"},
        "summary": _said(ACTIONS[action][0]),
        "messages": [{"$ref": f"#/channels/{action}/messages/request"}],
        "reply": {
            "address": {"location": "$message.header#/reply-to"},
            "channel": {"$ref": "#/channels/answer"},
            "messages": [{"$ref": f"#/channels/answer/messages/{action}"}],
        },
    }


def _signalled() -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": "#/channels/signals"},
        "summary": _said(Signal),
        "messages": [{"$ref": "#/channels/signals/messages/signal"}],
    }


def _message(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"name": kind.__name__, "summary": _said(kind), "payload": _named(kind)}


def _answer(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """`{"ok": …}`, or `{"error": …}` when the request was not carried out."""
    alternatives = [
        {"type": "object", "properties": {name: _named(said)}, "required": [name], "additionalProperties": False}
        for name, said in (("ok", kind), ("error", Failed))
    ]
    return {"name": f"{kind.__name__} or an error", "summary": _said(kind), "payload": {"oneOf": alternatives}}


def _named(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _said(kind: type[msgspec.Struct]) -> str:
    """The first sentence of a struct's docstring."""
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
