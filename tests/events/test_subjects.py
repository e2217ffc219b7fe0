"""Names in JetStream. Source: design section 7: subject tokens are base32 or an allow-list, never caller text."""

import hashlib
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tasktrail.events.subjects import (
    ANONYMOUS_TENANT,
    TASK_ID_LENGTH,
    access_subject,
    any_tenant_subject,
    control_subject,
    denied_subject,
    entry_id,
    framed,
    is_task_id,
    is_task_ref,
    key_subject,
    kind_of,
    task_id,
    task_ref,
    task_subject,
    tenant_token,
)

KEY, OTHER = b"k" * 32, b"o" * 32
TOKEN = re.compile(r"[A-Za-z0-9_-]{1,80}")
hostile = st.text(st.sampled_from("*>. \t\r\n\0$_x-Aé\ud800\U0001f600"), max_size=60)
texts = hostile | st.text(max_size=90)


@pytest.mark.requirement("A4")
@example("acme")
@example("")
@example("a.b")
@example("*")
@example(">")
@example("x-abc")
@example("a\r\nPUB x 1")
@example("\ud800")
@example("t" * 63)
@example("t" * 64)
@given(texts)
def test_a_tenant_is_one_harmless_token(tenant: str) -> None:
    """No `* > .`, no white space, no CRLF, never empty, bounded."""
    token = tenant_token(tenant)
    assert TOKEN.fullmatch(token)
    assert len(task_subject(tenant, "r" * 32).split(".")) == 5


@pytest.mark.requirement("A1")
@example("x-me", "me")
@example("_", "default")
@example("Acme", "acme")
@given(texts, texts)
def test_two_tenants_never_share_a_token(one: str, other: str) -> None:
    """Design section 7."""
    assume(one != other)
    assert tenant_token(one) != tenant_token(other)


@pytest.mark.requirement("A1")
@given(st.text(min_size=41, max_size=200), st.binary(max_size=40))
def test_a_tenant_named_by_its_digest_is_apart_from_every_tenant_spelled_out(long: str, raw: bytes) -> None:
    """Else a name whose bytes are another name's SHA-256 would share its token; such pairs can be searched for."""
    by_digest = tenant_token(long + " " * 41)
    assert by_digest.startswith("x--")
    spelled = tenant_token(raw.decode("utf-8", "replace")[:13])
    assert not spelled.startswith("x--")
    digest = hashlib.sha256((long + " " * 41).encode("utf-8", "surrogatepass")).digest()
    assert by_digest != tenant_token(digest.decode("latin-1"))


def test_the_anonymous_tenant_is_nobodys_name() -> None:
    """`_` is not what another tenant is encoded as."""
    assert tenant_token(ANONYMOUS_TENANT) == "_"
    assert tenant_token("__") not in {"_", "__"}


@pytest.mark.requirement("A4")
@example("")
@example("a.*.>")
@given(texts)
def test_a_reference_is_keyed_and_of_one_form_whatever_the_text(text: str) -> None:
    """Promise 5: everywhere outside sealed state a task is its keyed reference."""
    ref = task_ref(KEY, text)
    assert is_task_ref(ref)
    assert len(ref) == TASK_ID_LENGTH
    assert ref == task_ref(KEY, text)
    assert ref != task_ref(OTHER, text)
    assert ref != hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@given(st.lists(texts, min_size=1, max_size=5), st.lists(texts, min_size=1, max_size=5))
def test_parts_cannot_be_shifted_into_each_other(one: list[str], other: list[str]) -> None:
    """Identities are compared as tuples, never as joined strings (design section 6)."""
    assume(one != other)
    assert framed(*one) != framed(*other)
    assert task_id(KEY, *one) != task_id(KEY, *other)


@pytest.mark.requirement("L1")
def test_a_task_id_has_160_bits_and_says_nothing() -> None:
    """A bearer capability (promise 5): derived under a secret key, so that a repeated creation names the same task."""
    made = task_id(KEY, "reports", "acme", "iss", "ana", "desk", "command")
    assert is_task_id(made)
    assert len(made) * 5 == 160
    assert made == task_id(KEY, "reports", "acme", "iss", "ana", "desk", "command")
    assert made != task_id(OTHER, "reports", "acme", "iss", "ana", "desk", "command")
    assert made != task_ref(KEY, made)


@pytest.mark.requirement("A4")
@pytest.mark.parametrize("text", ["", "a" * 31, "a" * 33, "A" * 32, "1" * 32, "a" * 31 + "\n", "a" * 32 + "\n", "a.b"])
def test_malformed_handles_are_told_apart_from_handles(text: str) -> None:
    """The trail says which it was; the wire does not."""
    assert not is_task_id(text)
    assert not is_task_ref(text)


@given(texts, texts, texts, texts)
def test_an_entrys_id_belongs_to_one_scope_and_one_command(a: str, b: str, c: str, d: str) -> None:
    """It is the message id that JetStream refuses to store twice, in a stream of all tasks."""
    assume((a, b) != (c, d))
    assert entry_id(a, b) != entry_id(c, d)
    assert is_task_ref(entry_id(a, b))


def test_which_event_lives_where() -> None:
    """Design section 5, the table of subjects."""
    ref = task_ref(KEY, "t")
    subjects = {
        task_subject("acme", ref): "task",
        access_subject("acme", ref): "access",
        denied_subject("acme"): "denied",
        control_subject("acme"): "control",
        key_subject(ref): "",
        "trail": "",
        "trail.1.other.acme": "",
        "trail.1.task": "",
    }
    assert {subject: kind_of(subject) for subject in subjects} == subjects
    assert any_tenant_subject(ref) == task_subject("acme", ref).replace("acme", "*")
    assert ref not in key_subject(task_ref(OTHER, "t"))
