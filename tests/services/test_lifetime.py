"""The receiver's rules of time. Source: features P1 P2, issue "Authority" (TTL and retention)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasktrail.events.authority import BindingMode
from tasktrail.events.facts import Status
from tasktrail.services.configuration import YEAR_MS, Retention, Tool
from tasktrail.services.lifetime import PAYLOADS, granted, shred_at_ms
from tasktrail.services.settings import Settings

SERVICE = Settings(ttl_default_ms=60_000, ttl_max_ms=600_000)
RULES = (
    Tool(server="reports", tool="slow_*", ttl_default_ms=1_000, ttl_max_ms=900_000, binding=BindingMode.USER),
    Tool(server="reports", tenant="strict", ttl_max_ms=5_000, retention=Retention(completed_ms=0, payloads_ms=7)),
)
RULED = Settings(ttl_default_ms=60_000, ttl_max_ms=600_000, tools=RULES)

wishes = st.none() | st.integers(min_value=-(2**70), max_value=2**70)
lengths = st.integers(min_value=1, max_value=YEAR_MS)


@pytest.mark.requirement("P1")
@given(wishes, lengths, lengths, st.none() | lengths, st.none() | lengths)
def test_what_is_granted_is_more_than_nothing_and_never_more_than_the_cap(
    wished_ms: int | None, default_ms: int, max_ms: int, rule_default_ms: int | None, rule_max_ms: int | None
) -> None:
    """Features P1: null and huge wishes are capped."""
    rule = Tool(ttl_default_ms=rule_default_ms, ttl_max_ms=rule_max_ms)
    settings = Settings(ttl_default_ms=default_ms, ttl_max_ms=max_ms, tools=(rule,))
    life = granted(settings, "reports", "generate", "acme", wished_ms)
    assert 0 < life.granted_ms <= (rule_max_ms or max_ms)
    assert life.requested_ms == wished_ms
    assert life.set_by != "tool" or life.granted_ms == wished_ms


@pytest.mark.requirement("P1")
@pytest.mark.parametrize(
    ("settings", "tool", "tenant", "wished_ms", "granted_ms", "set_by"),
    [
        (SERVICE, "quick", "acme", None, 60_000, "service"),
        (SERVICE, "quick", "acme", 0, 60_000, "service"),
        (SERVICE, "quick", "acme", -1, 60_000, "service"),
        (SERVICE, "quick", "acme", 1, 1, "tool"),
        (SERVICE, "quick", "acme", 600_000, 600_000, "tool"),
        (SERVICE, "quick", "acme", 600_001, 600_000, "service"),
        (SERVICE, "quick", "acme", 10**30, 600_000, "service"),
        (RULED, "slow_report", "acme", None, 1_000, "tool_rule"),
        (RULED, "slow_report", "acme", 2_000, 2_000, "tool"),
        (RULED, "slow_report", "acme", 10**30, 900_000, "tool_rule"),
        (RULED, "quick", "acme", None, 60_000, "service"),
        (RULED, "quick", "strict", None, 5_000, "tool_rule"),
        (RULED, "quick", "strict", 6_000, 5_000, "tool_rule"),
    ],
)
def test_who_decided_is_said(  # noqa: PLR0913, PLR0917 - a row of the table
    settings: Settings, tool: str, tenant: str, wished_ms: int | None, granted_ms: int, set_by: str
) -> None:
    """Issue: requested, granted, and by whom; caps and defaults per tool and tenant, the first rule that fits."""
    life = granted(settings, "reports", tool, tenant, wished_ms)
    assert (life.granted_ms, life.set_by) == (granted_ms, set_by)


@pytest.mark.requirement("P2")
def test_retention_and_binding_are_the_first_fitting_rules_or_the_services() -> None:
    """Every terminal status has one, and so have the payloads."""
    ours = granted(RULED, "reports", "slow_report", "strict", None)
    assert ours.binding is BindingMode.USER
    assert ours.retention["completed"] == Retention().completed_ms
    theirs = granted(RULED, "reports", "quick", "strict", None)
    assert (theirs.binding, theirs.retention["completed"], theirs.retention[PAYLOADS]) == (BindingMode.EXACT, 0, 7)
    assert set(theirs.retention) == {status.value for status in Status if status.terminal} | {PAYLOADS}


@pytest.mark.requirement("P2", "R2")
def test_payloads_are_kept_as_the_creation_was_told_and_else_as_the_service_says() -> None:
    """Tasks older than the rule have none on the trail."""
    life = granted(RULED, "reports", "quick", "strict", None)
    assert shred_at_ms(RULED, 1_000, life.retention) == 1_007
    assert shred_at_ms(RULED, 1_000, {}) == 1_000 + Retention().payloads_ms
