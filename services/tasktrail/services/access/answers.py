"""Whether an answer to a request for input is one: its shape, and the schema it was asked with.

Guarantees: pure: no reference in a schema is ever fetched; a schema that cannot be used (no JSON Schema, a reference to
elsewhere) refuses what would have to satisfy it, and says so; values never appear in a fault. Sources: SEP-2663
(`inputResponses`), MCP 2026-07-28 (`ElicitResult`, `CreateMessageResult`, `ListRootsResult`).

    fault("elicitation/create", params, {"action": "accept", "content": {"name": "Luca"}})  ->  ""
"""

from collections.abc import Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

ELICITATION = "elicitation/create"
SAMPLING = "sampling/createMessage"
ROOTS = "roots/list"
METHODS = frozenset({ELICITATION, SAMPLING, ROOTS})

_NOTHING_ELSE: Registry[Any] = Registry()
_ACTIONS = ("accept", "decline", "cancel")


def action(method: str, answer: object) -> str:
    """What the client said: the elicitation's action, `result` for the other methods."""
    if method == ELICITATION and isinstance(answer, Mapping):
        said = cast("Mapping[str, object]", answer).get("action")
        return said if isinstance(said, str) and said in _ACTIONS else ""
    return "result"


def fault(method: str, params: object, answer: object) -> str:
    """Why `answer` does not answer a request of `method` with `params`; empty when it does."""
    if not isinstance(answer, Mapping):
        return "it is not an object"
    given = cast("Mapping[str, Any]", answer)
    if method == ELICITATION:
        return _elicitation(params, given)
    if method == SAMPLING:
        return _sampling(given)
    if method == ROOTS:
        return "" if isinstance(given.get("roots"), list) else "`roots` is not an array"
    return ""


def _elicitation(params: object, given: Mapping[str, Any]) -> str:
    if given.get("action") not in _ACTIONS:
        return "`action` is none of accept, decline, cancel"
    asked: Mapping[str, Any] = cast("Mapping[str, Any]", params) if isinstance(params, Mapping) else {}
    schema = asked.get("requestedSchema")
    form = asked.get("mode", "form") == "form" and isinstance(schema, Mapping)
    if given["action"] != "accept" or not form:
        return ""
    return _content(cast("Mapping[str, Any]", schema), given.get("content"))


def _content(schema: Mapping[str, Any], content: object) -> str:
    if not isinstance(content, Mapping):
        return "`content` is not an object"
    given = cast("Mapping[str, Any]", content)
    try:
        Draft202012Validator.check_schema(schema)
        validator: Any = Draft202012Validator(schema, registry=_NOTHING_ELSE)
        error: ValidationError | None = next(iter(validator.iter_errors(given)), None)
    except (SchemaError, Unresolvable, RecursionError):
        return "its request carries a schema that cannot be used"
    return _told(error) if error else ""


def _told(error: ValidationError) -> str:
    """The failing place and keyword, without the value."""
    place = "/".join(str(part) for part in error.absolute_path)
    if error.validator == "required":
        missing = [name for name in cast("list[str]", error.validator_value) if name not in cast("Any", error.instance)]
        return f"`content` lacks {', '.join(missing)}"
    return f"`content/{place}` fails `{error.validator}`" if place else f"`content` fails `{error.validator}`"


def _sampling(given: Mapping[str, Any]) -> str:
    if given.get("role") not in {"user", "assistant"}:
        return "`role` is neither user nor assistant"
    if not isinstance(given.get("model"), str):
        return "`model` is not a string"
    if not isinstance(given.get("content"), Mapping | list):
        return "`content` is neither an object nor an array"
    return ""
