"""What must be nowhere in a directory's files, and whether it is.

Guarantees: every regular file is searched, none is held in memory.

    found_in(data, {"ana's token": token})  ->  (36, ["nats/nats.log: ana's token"])
"""

import mmap
from collections.abc import Mapping
from pathlib import Path


def found_in(data: Path, texts: Mapping[str, str]) -> tuple[int, list[str]]:
    """How many files there are under `data`, and which of them hold one of these texts (what it is: the text)."""
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and not path.is_symlink()]
    wanted = {what: text.encode() for what, text in texts.items()}
    hits: list[str] = []
    for path in files:
        if path.stat().st_size == 0:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            hits += [f"{path.relative_to(data)}: {what}" for what, text in wanted.items() if content.find(text) >= 0]
    return len(files), hits
