"""What holds of each named query whatever it asks: issue "Forensics", features T4, A8."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.projections.audit.histories import mixed
from tests.projections.audit.incident import IN_CORRELATION, Case, given_for
from tests.projections.audit.stores import opened

from tasktrail.projections.audit.named import NamedQuery, catalogue, read_parameters


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    one = Case(tmp_path_factory.mktemp("incident") / "audit.duckdb")
    yield one
    one.store.close()


@pytest.mark.parametrize("query", catalogue().values(), ids=lambda one: one.name)
def test_every_row_names_its_entry_and_its_leaf(case: Case, query: NamedQuery) -> None:
    """Issue: every row carries stream sequence, entry id and leaf hash."""
    rows = {
        (row[0], row[1], row[2]) for row in case.asked("changed_since", "stream_seq entry_id leaf_sha256", sequence="0")
    }
    leaves = {leaf for _, _, leaf in rows}
    answer = case.asked(query.name, "stream_seq entry_id leaf_sha256", **given_for(query, case.incident.a))
    assert answer or query.name in IN_CORRELATION
    for row in answer:
        assert row in rows or (row[0] in {27, 28} and row[1] is None and row[2] not in leaves), row


@pytest.mark.parametrize("query", catalogue().values(), ids=lambda one: one.name)
def test_pages_are_the_whole_answer_and_never_cut_a_sequence(case: Case, query: NamedQuery) -> None:
    given = read_parameters(query, given_for(query, case.incident.a))
    whole = case.store.ask(query, given, tenant=None, most=1_000)
    for most in (1, 2, 5):
        pages = list(case.store.ask_batches(query, given, tenant=None, most=most))
        assert [row for page in pages for row in page.rows] == whole.rows
        assert [page.more for page in pages] == [True] * (len(pages) - 1) + [False]
        for before, page in pairwise(pages):
            sequences = [row[0] for row in page.rows]
            assert before.after == before.rows[-1][0]
            assert before.after not in sequences
    assert whole.as_of == 28


@pytest.mark.requirement("A8")
@pytest.mark.parametrize("query", catalogue().values(), ids=lambda one: one.name)
def test_no_row_of_another_tenant_is_in_any_answer(case: Case, query: NamedQuery) -> None:
    """Globex sees its own, and what concerns everybody: policies, gaps, revocations without a tenant."""
    everybody = {1, 20, 21, 23, 27}
    own = {5, 18, 19}
    for given in ({**given_for(query, case.incident.a)}, {**given_for(query, case.incident.g)}):
        told = {row[0] for row in case.ask(query.name, "globex", **given).rows}
        assert told <= own | everybody, query.name
        if query.name not in {"policies", "gaps", "revocations"}:
            assert told <= own, query.name
    assert {row[0] for row in case.ask("changed_since", "globex", sequence="0").rows} == own
    assert {row[0] for row in case.ask("by_tool", "globex").rows} == {5}
    assert case.ask("timeline", "globex", task=case.incident.a).rows == []
    assert [row[0] for row in case.ask("timeline", "acme", task=case.incident.a).rows][-1] == 28


HOSTILE = ("' OR 1=1 --", '"; DROP TABLE entries; --', "$tenant", "%", "\\", "a\x00b", "\u202e\U0001f600", "NULL")


@pytest.mark.parametrize("query", catalogue().values(), ids=lambda one: one.name)
def test_hostile_text_is_data(case: Case, query: NamedQuery) -> None:
    texts = [one.name for one in query.parameters if one.kind == "text"]
    asked = given_for(query, case.incident.a)
    for name in texts:
        base = {one: text for one, text in asked.items() if not {one, name} <= set(query.one_of)}
        for hostile in HOSTILE:
            assert case.ask(query.name, **{**base, name: hostile}).rows == []
    for hostile in HOSTILE:
        assert {row[0] for row in case.ask(query.name, hostile, **given_for(query, case.incident.a)).rows} <= {
            1,
            20,
            21,
            23,
            27,
        }


def test_what_is_appended_meanwhile_is_not_in_a_whole_answer_of_before(tmp_path: Path) -> None:
    trail = mixed(200)
    store = opened(tmp_path / "audit.duckdb")
    store.append(trail.messages[:120])
    query = catalogue()["changed_since"]
    pages = store.ask_batches(query, read_parameters(query, {"sequence": "0"}), tenant=None, most=30)
    told = [row[0] for row in next(pages).rows]
    store.append(trail.messages[120:])
    told += [row[0] for page in pages for row in page.rows]
    store.close()
    assert set(told) == set(range(1, 121))


def test_one_sequence_with_more_rows_than_a_page_comes_whole(case: Case) -> None:
    query = catalogue()["disclosures"]
    given = read_parameters(query, {"task": case.incident.a})
    page = case.store.ask(query, given, tenant=None, most=1)
    assert ([row[0] for row in page.rows], page.more) == ([10, 10], False)
