"""Whether an answer to a request for input is one: its shape, and the schema it was asked with.

Guarantees: pure: no reference in a schema is ever fetched; a schema that cannot be used (no JSON Schema, a reference to
elsewhere) refuses what would have to satisfy it, and says so; values never appear in a fault. Sources: SEP-2663
(`inputResponses`), MCP 2026-07-28 (`ElicitResult`, `CreateMessageResult`, `ListRootsResult`).

    fault("elicitation/create", params, {"action": "accept", "content": {"name": "Luca"}})  ->  ""
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend  # pyright: ignore[reportUnknownVariableType] # its stubs leave it untyped
from referencing import Registry
from referencing.exceptions import Unresolvable

ELICITATION = "elicitation/create"
SAMPLING = "sampling/createMessage"
ROOTS = "roots/list"
METHODS = frozenset({ELICITATION, SAMPLING, ROOTS})

_NOTHING_ELSE: Registry[Any] = Registry()
_NO_FORMATS = FormatChecker(formats=())
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
        return _roots(given)
    return ""


def _elicitation(params: object, given: Mapping[str, Any]) -> str:
    if given.get("action") not in _ACTIONS:
        return "`action` is none of accept, decline, cancel"
    content = given.get("content")
    if content is not None and not _is_form(content):
        return "`content` is not an object of strings, numbers, booleans and arrays of strings"
    asked: Mapping[str, Any] = cast("Mapping[str, Any]", params) if isinstance(params, Mapping) else {}
    schema = asked.get("requestedSchema")
    form = asked.get("mode", "form") == "form" and isinstance(schema, Mapping)
    if given["action"] != "accept" or not form:
        return ""
    return _content(cast("Mapping[str, Any]", schema), cast("object", content))


def _is_form(content: object) -> bool:
    """Whether this is what a form can hold at all (`ElicitResult.content`)."""
    return isinstance(content, Mapping) and all(map(_is_field, cast("Mapping[str, object]", content).values()))


def _is_field(value: object) -> bool:
    """Whether a form may hold this value."""
    if isinstance(value, list):
        return all(isinstance(one, str) for one in cast("list[object]", value))
    return isinstance(value, str | int | float)


def _pattern(validator: Any, pattern: str, instance: object, _: object) -> Iterator[ValidationError]:  # noqa: ANN401
    """`pattern` where Python can read it: JSON Schema means ECMA-262, which is not quite ours."""
    try:
        found = not validator.is_type(instance, "string") or re.search(pattern, cast("str", instance))
    except re.error:
        return
    if not found:
        yield ValidationError("does not match")


_Validator: Any = cast("Any", extend)(Draft202012Validator, {"pattern": _pattern})


def _content(schema: Mapping[str, Any], content: object) -> str:
    if not isinstance(content, Mapping):
        return "`content` is not an object"
    given = cast("Mapping[str, Any]", content)
    try:
        Draft202012Validator.check_schema(schema, format_checker=_NO_FORMATS)
        validator: Any = _Validator(schema, registry=_NOTHING_ELSE)
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


_BLOCKS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "image": {"data": str, "mimeType": str},
    "audio": {"data": str, "mimeType": str},
    "tool_use": {"id": str, "name": str, "input": Mapping},
    "tool_result": {"toolUseId": str, "content": list},
}
"""Content blocks of a sampled message, and the members each must have (MCP 2026-07-28)."""


def _sampling(given: Mapping[str, Any]) -> str:
    if given.get("role") not in {"user", "assistant"}:
        return "`role` is neither user nor assistant"
    if not isinstance(given.get("model"), str):
        return "`model` is not a string"
    content = given.get("content")
    blocks = cast("list[object]", content) if isinstance(content, list) else [content]
    if not blocks or not all(map(_is_block, blocks)):
        return f"`content` is not a block, or an array of blocks, of type {', '.join(_BLOCKS)}"
    return ""


def _is_block(block: object) -> bool:
    if not isinstance(block, Mapping):
        return False
    given = cast("Mapping[str, object]", block)
    needed = _BLOCKS.get(str(given.get("type")))
    return needed is not None and all(isinstance(given.get(name), kind) for name, kind in needed.items())


def _roots(given: Mapping[str, Any]) -> str:
    roots = given.get("roots")
    listed = cast("list[object]", roots) if isinstance(roots, list) else [None]
    whole = all(isinstance(one, Mapping) and isinstance(cast("Any", one).get("uri"), str) for one in listed)
    return "" if whole else "`roots` is not an array of objects with a `uri`"
