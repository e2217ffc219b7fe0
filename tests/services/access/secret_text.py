"""Text that looks like a secret: made at run time, of pieces; it opens nothing."""

import base64
import hashlib
import json
import string

ALPHANUMERIC = string.ascii_letters + string.digits
BASE64URL = ALPHANUMERIC + "-_"


def body(length: int, letters: str = ALPHANUMERIC, seed: str = "") -> str:
    """What looks random, the same in every run."""
    drawn = hashlib.shake_256(f"{length}{letters}{seed}".encode()).digest(length)
    return "".join(letters[byte % len(letters)] for byte in drawn)


def part(said: object, separators: tuple[str, str] = (",", ":")) -> str:
    """A part of a JWT."""
    return base64.urlsafe_b64encode(json.dumps(said, separators=separators).encode()).decode().rstrip("=")


def jwt(header: object, *, separators: tuple[str, str] = (",", ":")) -> str:
    return f"{part(header, separators)}.{part({'sub': 'ana'})}.{body(43, BASE64URL)}"
