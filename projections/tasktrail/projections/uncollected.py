"""Reading many messages without looking for cycles among what was read: entries, states and rows hold none.

Guarantees: memory is freed as ever, when nothing refers to it any more; only the search for cycles waits, for a batch.
That search looked at everything that is held, again and again, and took a tenth of a replay.

    with uncollected():
        for message in messages: …
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """No search for cycles while the block runs, unless it was switched off before; of the whole process."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
