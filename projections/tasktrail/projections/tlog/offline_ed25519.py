"""Ed25519 signatures for the stand-alone verifier. Standard library only.

Guarantees: whatever the bytes, the answer is yes or no, and each signature and point has one form only: one that is
written in another way is refused, and so is a key of small order. Runs on Python 3.9, because `verifier` in `bundle.py`
puts it into the `verify.py` of every bundle. It shares no code with the rest of tasktrail, so that two implementations
agree in the tests. Slow, and not in constant time: it is for public values only.

    ed25519_verified(public, message, signature)

Source: RFC 8032, section 5.1.7, without the cofactor, as OpenSSL does it.
"""

from __future__ import annotations

import functools
import hashlib
from typing import cast

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]  # extended coordinates: x = X/Z, y = Y/Z, X*Y = T*Z
_NEUTRAL: _Point = (0, 1, 1, 0)


def added(one: _Point, other: _Point) -> _Point:
    """The sum of two points (RFC 8032, section 5.1.4)."""
    a = (one[1] - one[0]) * (other[1] - other[0]) % _P
    b = (one[1] + one[0]) * (other[1] + other[0]) % _P
    c = 2 * one[3] * other[3] * _D % _P
    d = 2 * one[2] * other[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def point_of(raw: bytes) -> _Point | None:
    """The point that these 32 bytes are, in the one way to write it; None when they are none."""
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    x = _P - x if x & 1 != sign else x
    return x, y, 1, x * y % _P


def written(point: _Point) -> bytes:
    """The 32 bytes of a point (RFC 8032, section 5.1.2)."""
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


_Table = list[list[_Point]]


def _multiples(point: _Point) -> _Table:
    """Row i holds 0, 1, … 15 times 16**i times the point: a product is then one addition for each row."""
    rows: _Table = []
    for _ in range(64):
        row = [_NEUTRAL]
        for _ in range(15):
            row.append(added(row[-1], point))
        rows.append(row)
        point = added(row[-1], point)
    return rows


def times(scalar: int, rows: _Table) -> _Point:
    """So many times the point that these are the multiples of."""
    total = _NEUTRAL
    for row in rows:
        total = added(total, row[scalar & 15])
        scalar >>= 4
    return total


@functools.lru_cache(maxsize=64)
def _key_table(public: bytes) -> _Table | None:
    """Multiples of the negated key; None for bytes that are no key. A key of small order would 'sign' anything."""
    point = point_of(public)
    if point is None:
        return None
    rows = _multiples((_P - point[0], point[1], 1, _P - point[3]))
    return None if written(rows[0][8]) == written(_NEUTRAL) else rows


@functools.lru_cache(maxsize=1)
def base_table() -> _Table:
    """Multiples of the base point."""
    base = point_of((4 * pow(5, _P - 2, _P) % _P).to_bytes(32, "little"))
    return _multiples(cast("_Point", base))


def ed25519_verified(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this is the Ed25519 signature of the message by the key. Takes each signature in one form only."""
    if len(public) != 32 or len(signature) != 64:  # noqa: PLR2004 - RFC 8032
        return False
    s = int.from_bytes(signature[32:], "little")
    rows = _key_table(public)
    if s >= _L or rows is None:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % _L
    return written(added(times(s, base_table()), times(k, rows))) == signature[:32]
