"""JSON from strangers: what is refused, where the message says it is, and that what is accepted means one thing."""

import json
import string
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasktrail.events.errors import InvalidRequest, TooLarge
from tasktrail.services.strict_json import DEPTH_MAX, INTEGER_MAX, decode, read

KIB_64 = 65_536

plain_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain_text
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(plain_text, inner, max_size=5), max_leaves=40
)


def refusal(body: bytes, *, bytes_max: int = KIB_64, depth_max: int = DEPTH_MAX) -> str:
    with pytest.raises(InvalidRequest) as caught:
        decode(body, bytes_max=bytes_max, depth_max=depth_max)
    return caught.value.message


@given(values, st.booleans())
def test_every_acceptable_value_is_read_back_as_it_was(value: object, ascii_only: bool) -> None:  # noqa: FBT001
    """RFC 8259: escaped and unescaped spellings of a value are the same value."""
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert decode(body, bytes_max=len(body), depth_max=100) == value


@given(st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0d8c19eE+-.NaIfity \n', max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused_and_nothing_else(body: bytes) -> None:
    """The fuzzer's whole claim: a value that every reader agrees on, or our own error."""
    try:
        value = decode(body, bytes_max=KIB_64, depth_max=8)
    except InvalidRequest:
        return
    assert msgspec.json.decode(msgspec.json.encode(value)) == value


@given(st.integers(0, 40), st.text(alphabet='"\\[]{}a', max_size=20), st.booleans())
def test_depth_is_counted_exactly_whatever_strings_look_like(depth: int, text: str, objects: bool) -> None:  # noqa: FBT001
    """An array of a scalar has depth 1; brackets within strings do not count."""
    value: object = text
    for _ in range(depth):
        deeper: dict[str, object] | list[object] = {text: value} if objects else [text, value]
        value = deeper
    body = json.dumps(value).encode()
    assert decode(body, bytes_max=KIB_64, depth_max=depth) == value
    if depth:
        assert "deeper than" in refusal(body, depth_max=depth - 1)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty; send JSON"),
        (b" \r\n\t", "the body is empty; send JSON"),
        (b"{", "the body is no JSON: Expecting property name enclosed in double quotes at line 1 column 2"),
        (b'{"a":1} x', "the body is no JSON: Extra data at line 1 column 9"),
        (b"\xef\xbb\xbf{}", "the body is no JSON: Expecting value at line 1 column 1"),
        (b'["\xff"]', "the body is not UTF-8: byte 2 (invalid start byte)"),
        (b'["\xed\xa0\x80"]', "the body is not UTF-8: byte 2 (invalid continuation byte)"),
        (b'{"a":{"b":[1,{"c":1,"c":2}]}}', "$.a.b[1].c: repeated member name; send each name once"),
        (b'{"a b":1,"a b":2}', '$["a b"]: repeated member name; send each name once'),
        (b'{"a":1,"\\u0061":2}', "$.a: repeated member name; send each name once"),
        (b'{"a":[NaN]}', "$.a[0]: NaN is no JSON number"),
        (b"[-Infinity]", "$[0]: -Infinity is no JSON number"),
        (b"[1e400]", "$[0]: number too large for a double"),
        (b'{"n":9007199254740992}', "$.n: integer beyond 9007199254740991"),
        (b'{"n":-9007199254740992}', "$.n: integer beyond 9007199254740991"),
        (b"9" * 6_000, "$: integer beyond 9007199254740991"),
        (b'["\\ud800"]', "$[0]: lone surrogate in a string"),
        (b'{"\\udc00":1}', "$: lone surrogate in a member name"),
        (b'{"x":"a\\u0000b"}', "$.x: NUL character in a string"),
        (b'{"a\\u0000":1}', "$: NUL character in a member name"),
        (b'["a\0b"]', "the body is no JSON: Invalid control character"),
        (b"[" * 60_000, f"the body is nested deeper than {DEPTH_MAX} levels"),
        (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, f"the body is nested deeper than {DEPTH_MAX} levels"),
    ],
)
def test_a_refusal_names_the_problem_and_where_it_is(body: bytes, says: str) -> None:
    """Design, section 8: duplicate keys, NaN, depth, integers from 2^53, lone surrogates each need their answer."""
    assert refusal(body).startswith(says)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[9007199254740991, -9007199254740991]", [INTEGER_MAX, -INTEGER_MAX]),
        (b'["\\ud83d\\ude00"]', ["\N{GRINNING FACE}"]),
        (b'["\\\\u0000"]', ["\\u0000"]),
        (b'["1111111111111111111111", 1.5e300, -0.0]', ["1" * 22, 1.5e300, -0.0]),
        (b' {"a": {"b": 1}, "c": {"b": 2}} ', {"a": {"b": 1}, "c": {"b": 2}}),
    ],
)
def test_what_only_looks_like_a_problem_is_taken(body: bytes, value: object) -> None:
    assert decode(body, bytes_max=KIB_64) == value


def test_a_body_that_is_too_long_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(TooLarge, match="the body has 11 bytes; at most 10 are taken"):
        decode(b"\xff" * 11, bytes_max=10)


def test_a_refusal_quotes_little_of_what_was_sent() -> None:
    name = string.ascii_letters * 100
    message = refusal(f'{{"{name}":1,"{name}":2}}'.encode())
    assert len(message) < 120


def test_memory_stays_in_proportion_to_the_body() -> None:
    """Nothing is multiplied: the worst of these shapes is an object of many short members."""
    many = ("{" + ",".join(f'"{n}":[]' for n in range(6_000)) + "}").encode()
    for body in (many, b"[" * KIB_64, b"[" + b"{}," * 20_000 + b"NaN]", b'"' + b"\\u0000" * 10_000 + b'"'):
        tracemalloc.start()
        try:
            decode(body, bytes_max=2 * KIB_64)
        except InvalidRequest:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 64 * len(body)


class Question(msgspec.Struct, forbid_unknown_fields=True):
    task: str


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{}", "missing required field `task`"),
        (b'{"task": 1}', r"Expected `str`, got `int` - at `\$.task`"),
        (b'{"task": "a", "extra": 1}', "unknown field `extra`"),
        (b"[]", "Expected `object`, got `array`"),
    ],
)
def test_a_body_of_another_shape_is_refused_naming_the_field(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        read(body, Question, bytes_max=KIB_64)


def test_a_body_of_the_right_shape_is_read() -> None:
    assert read(b'{"task": "a"}', Question, bytes_max=KIB_64) == Question(task="a")
