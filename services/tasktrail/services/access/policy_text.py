"""The text of a policy before it decides anything: what is wrong with it, and in which line.

Guarantees: a text is read by Cedar only when its size, nesting and operators are within bounds: Cedar's parser and
evaluator recurse, and a text nested deep enough would end the process. Problems name the line wherever the policy they
are in can be told.

    problems('permit(principal, action, resource);', schema, set())  ->  ["line 1: this policy has no @id; …"]
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import cedarpy

from tasktrail.services.access.rules import Rule

TEXT_BYTES_MAX = 64 * 1024
NESTING_MAX = 32
"""How deep brackets, and how many `if`s, a policy may nest. Measured with cedarpy 4.12: 800 levels ended a process."""
OPERATORS_MAX = 1000
"""Words and signs in one policy, but for commas, brackets and literals. 20,000 of them in a chain ended a process."""
PROBLEMS_MAX = 20
"""How many problems of a text are told; of the others, how many they are."""

_TOKEN = re.compile(r'(?P<space>\s+|//[^\n\r]*)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>\w+)|(?P<sign>.)', re.DOTALL)
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_POLICY = re.compile(r"policy(\d+)")
_OF_WHAT = re.compile(r'Action::"\w+"|entity type `\w+`')
_SAID = re.compile(r"^for policy `policy\d+`, ")


class Statement(NamedTuple):
    """One policy of a text: the line it begins in (from 1), its text, and how far it nests and goes on."""

    line: int
    text: str
    nesting: int
    operators: int


def statements(text: str) -> list[Statement]:
    """The policies of a text, told apart by their semicolons only: whether they are any, Cedar says."""
    return list(_statements(text))


def _statements(text: str) -> Iterator[Statement]:
    newlines = [found.start() for found in re.finditer("\n", text)]
    begins: int | None = None
    depth = deepest = ifs = operators = 0
    for token in _TOKEN.finditer(text):
        if token["space"]:
            continue
        if begins is None:
            begins, deepest, ifs, operators = token.start(), depth, 0, 0
        match token["word"] or token["sign"]:
            case "(" | "[" | "{":
                depth += 1
                deepest = max(deepest, depth)
            case ")" | "]" | "}":
                depth = max(0, depth - 1)  # and not reset by a semicolon: in brackets it ends nothing
            case ";":
                line = bisect_right(newlines, begins) + 1
                yield Statement(line, text[begins : token.end()], deepest + ifs, operators)
                begins = None
            case None | ",":
                pass
            case other:
                ifs += other == "if"
                operators += not other.isdigit()
    if begins is not None:
        yield Statement(bisect_right(newlines, begins) + 1, text[begins:], deepest + ifs, operators)


def unreadable(text: str) -> list[str]:
    """Why Cedar is not to read, or cannot read, the text; empty when it did."""
    return _first(_unreadable(text))


def _first(told: list[str]) -> list[str]:
    return told[:PROBLEMS_MAX] + [f"and {len(told) - PROBLEMS_MAX} more"] * (len(told) > PROBLEMS_MAX)


def _unreadable(text: str) -> list[str]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return ["the text is not UTF-8"]
    if size > TEXT_BYTES_MAX:
        return [f"the text has {size} bytes; the maximum is {TEXT_BYTES_MAX}"]
    found: list[str] = []
    for one in statements(text):
        if one.nesting > NESTING_MAX:
            found.append(f"line {one.line}: this policy nests {one.nesting} deep; the maximum is {NESTING_MAX}")
        if one.operators > OPERATORS_MAX:
            found.append(f"line {one.line}: this policy has {one.operators} words and signs, at most {OPERATORS_MAX}")
    return found or _unparsable(text)


def _unparsable(text: str) -> list[str]:
    fault = _fault(text)
    if not fault:
        return []
    broken = [(one.line, said) for one in statements(text) if (said := _fault(one.text))]
    return [f"line {line}: in the policy that begins here: {said}" for line, said in broken] or [fault]


def _fault(text: str) -> str:
    try:
        cedarpy.PolicySet.from_str(text)
    except ValueError as error:
        return str(error)
    return ""


def ids(text: str) -> tuple[str, ...]:
    """The `@id` of each policy in the order of the text; empty where there is none."""
    return tuple(str(one.get("annotations", {}).get("id") or "") for one in _policies(text))


def _policies(text: str) -> list[dict[str, Any]]:
    """The policies of a readable text in its order, as Cedar's JSON; templates among them."""
    said = cast("dict[str, dict[str, Any]]", json.loads(cedarpy.policies_to_json_str(text)))
    numbered = {**said["staticPolicies"], **said["templates"]}
    return [numbered[name] for name in sorted(numbered, key=lambda name: int(name.removeprefix("policy")))]


def problems(text: str, schema: cedarpy.Schema, reserved: set[str]) -> list[str]:
    """What is wrong with the text, by line where that is known; empty when it may decide.

    `reserved` are reasons that no policy may be named after, besides those of the rules in code.
    """
    if found := unreadable(text):
        return found
    policies, places = _policies(text), [one.line for one in statements(text)]
    if not policies:
        return ["the text holds no policy: everything would be denied"]
    seen: dict[str, int] = {}
    for line, policy in zip(places, policies, strict=True):
        name = str(policy.get("annotations", {}).get("id") or "")
        found += [f"line {line}: {fault}" for fault in _faults(policy, name, reserved)]
        if name in seen:
            found.append(f"line {line}: @id({name!r}) is the policy's in line {seen[name]} already")
        elif name:
            seen[name] = line
    return _first(found + _invalid(text, schema, places))


def _invalid(text: str, schema: cedarpy.Schema, places: list[int]) -> list[str]:
    """What Cedar says against the schema, in the order of the text; what it says of several types or actions, once."""
    said: dict[tuple[int, str], str] = {}
    for error in sorted(cedarpy.validate_policies(text, schema).errors, key=lambda error: error.error):
        number = _POLICY.search(error.policy_id or error.error)
        fault = _SAID.sub("", error.error)
        said.setdefault((places[int(number[1])] if number else 0, _OF_WHAT.sub("", fault)), fault)
    return [f"line {line}: {fault}" if line else fault for (line, _), fault in sorted(said.items())]


def _faults(policy: dict[str, Any], name: str, reserved: set[str]) -> Iterator[str]:
    """What we ask of a policy beyond Cedar."""
    if not name:
        yield '@id is missing: write @id("some-name") before the policy, decisions name it'
    elif not _ID.fullmatch(name):
        yield f"@id({name!r}) should be up to 64 lower-case letters, digits and hyphens"
    elif name in reserved or name in set(Rule):
        yield f"@id({name!r}) is the reason of a decision made elsewhere; use another name"
    if any("slot" in policy.get(part, {}) for part in ("principal", "resource")):
        yield "a template decides nothing, and nothing links it: write the policy out"
    for kind, entity in sorted(set(_entities(policy))):
        yield f"{kind}::{json.dumps(entity)} is never met: entities have no identity here, compare their attributes"


def _entities(node: object) -> Iterator[tuple[str, str]]:
    """The entities, but for actions, that a policy names."""
    if isinstance(node, list):
        for one in cast("list[object]", node):
            yield from _entities(one)
    elif isinstance(node, dict):
        members = cast("dict[str, object]", node)
        match members:
            case {"type": str(kind), "id": str(entity)} if len(members) == 2:  # noqa: PLR2004 - type and id
                if kind != "Action":
                    yield kind, entity
            case _:
                for one in members.values():
                    yield from _entities(one)
