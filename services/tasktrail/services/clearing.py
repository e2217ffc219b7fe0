"""Task ids out of what is about to be recorded: an id opens its task, so the trail never holds one (design, section 1).

Guarantees: each id of a task of this trail, wherever it stands in a text, is replaced by its reference; whatever else
looks like one stays as it is, for references look the same.

    cleared = without_task_ids({"sql": text}, keyring.ref, store)     # blocks
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping

from tasktrail.events.subjects import TASK_ID_LENGTH
from tasktrail.projections.audit.store import AuditStore

_RUN = re.compile(rf"[a-z2-7]{{{TASK_ID_LENGTH},}}")


def without_task_ids(texts: Mapping[str, str], ref_of: Callable[[str], str], store: AuditStore) -> dict[str, str]:
    """These texts, names and values, with the reference in place of each task id. `ref_of` is the keyring's."""
    found = {word for pair in texts.items() for text in pair for word in _words(text)}
    if not found:
        return dict(texts)
    refs = {ref_of(word): word for word in found}
    with contextlib.closing(store.cursor()) as cursor:
        rows = cursor.execute(
            "SELECT task_ref FROM tasks WHERE task_ref IN (SELECT unnest($refs))", {"refs": list(refs)}
        ).fetchall()
    ids = {refs[str(row[0])]: str(row[0]) for row in rows}
    return {_replaced(name, ids): _replaced(text, ids) for name, text in texts.items()}


def _words(text: str) -> Iterator[str]:
    """Everything in the text that has the form of an id, also within longer runs of its letters."""
    for run in _RUN.findall(text):
        for start in range(len(run) - TASK_ID_LENGTH + 1):
            yield run[start : start + TASK_ID_LENGTH]


def _replaced(text: str, ids: Mapping[str, str]) -> str:
    for task, ref in ids.items():
        text = text.replace(task, ref)
    return text
