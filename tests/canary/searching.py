"""Looks for secrets in bytes, whatever form they took: raw, UTF-16, hexadecimal, base64 at each of its alignments.

Compressed bytes are not opened: the tests see that nothing is compressed, or read it through its own engine.

    haystacks(data)             every file under a directory, by name
    found(haystack, secrets)    names of the secrets that are in it
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb


def forms(secret: bytes) -> set[bytes]:
    """Every form of a secret that is looked for."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    found |= {wide for coding in ("utf-16-le", "utf-16-be") if (wide := _wide(secret, coding))}
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret)
        first, last = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        # The characters that depend on the secret alone, whatever stands before and after it.
        inner = encoded[first:last]
        found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def _wide(secret: bytes, coding: str) -> bytes:
    try:
        return secret.decode("utf-8").encode(coding)
    except UnicodeDecodeError:
        return b""


def raw_of(handle: str) -> bytes:
    """The 160 bits that a task id spells in base32."""
    return base64.b32decode(handle.upper())


class Secrets:
    """What must not be found, by name."""

    def __init__(self) -> None:
        self._forms: dict[str, set[bytes]] = {}

    def add(self, name: str, secret: str | bytes) -> None:
        """One more; at least eight bytes, so that nothing is found by accident."""
        raw = secret.encode() if isinstance(secret, str) else secret
        assert len(raw) >= 8, name
        self._forms.setdefault(name, set()).update(forms(raw))

    def add_handle(self, name: str, handle: str) -> None:
        """A task id, also as the bits it spells."""
        self.add(name, handle)
        self.add(name, raw_of(handle))

    def within(self, haystack: bytes) -> list[str]:
        """Names of those that are in these bytes, in whichever form."""
        return [name for name, needles in self._forms.items() if any(needle in haystack for needle in needles)]

    def found(self, haystacks: Mapping[str, bytes]) -> list[str]:
        """Where which of them is."""
        return [f"{name} in {where}" for where, content in haystacks.items() for name in self.within(content)]


def files(folder: Path, *more: Path) -> dict[str, bytes]:
    """Every byte of every file under a directory, and of `more` files. Files that go away meanwhile hold nothing."""
    found: dict[str, bytes] = {}
    for path in (*sorted(folder.rglob("*")), *more):
        try:
            if path.is_file():
                found[path.name if path in more else str(path.relative_to(folder))] = path.read_bytes()
        except FileNotFoundError:
            continue
    return found


def rows(store: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of every table and row of a DuckDB file that nobody holds open: its blocks may be compressed."""
    with duckdb.connect(store, read_only=True) as database:
        tables = database.execute("SELECT table_name FROM duckdb_tables()").fetchall()
        for (table,) in tables:
            for number, row in enumerate(database.execute(f"FROM {table}").fetchall()):
                yield f"{table} row {number}", b"\0".join(_bytes(value) for value in row)


def _bytes(value: object) -> bytes:
    return bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode("utf-8", "surrogatepass")


def spelled(text: str) -> Iterator[tuple[str, bytes]]:
    """A text in other spellings than `forms` makes, for a test of the search itself."""
    raw = text.encode()
    yield "raw", b"before " + raw + b" after"
    yield "json", b'{"a": "' + raw + b'"}'
    yield "wide", ("x" + text + "y").encode("utf-16-le")
    yield "hex", binascii.hexlify(b"..." + raw + b"...")
    for before in range(5):
        for after in range(3):
            framed = b"~" * before + raw + b"~" * after
            yield f"base64 {before} {after}", base64.b64encode(framed)
            yield f"base64url {before} {after}", base64.urlsafe_b64encode(framed).rstrip(b"=")
