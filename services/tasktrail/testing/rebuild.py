"""Both projections built again from a trail, independently of the services that keep them, and compared.

Guarantees: reads the trail itself, message by message, and folds it with the pure code of `tasktrail.projections`
alone; says of each difference what it is. Needs a NATS user who may read the streams.

    book = Book()
    await book.read(js)
    assert not book.faults
    assert not await current_differences(js, book)
    assert not audit_differences(data / "audit.duckdb", book, tmp_path)
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from itertools import batched_messages
