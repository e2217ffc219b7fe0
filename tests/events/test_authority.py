"""Who caused a step, and how callers are compared. Source: design section 6, features A1 A5 A6."""

from itertools import product

import msgspec
import pytest

from tasktrail.events.authority import (
    COMPARED,
    Authority,
    Binding,
    BindingCheck,
    BindingMode,
    Level,
    Trigger,
    differences,
    identity,
)
from tasktrail.testing.scenario import ANA, authority

MEMBERS = ("tenant", "iss", "sub", "client_id")


@pytest.mark.requirement("A1")
@pytest.mark.parametrize("mode", list(BindingMode))
def test_each_mode_compares_its_members_and_no_others(mode: BindingMode) -> None:
    """Design section 6: exact is all four; user is without the client; client; tenant."""
    wanted = {"exact": MEMBERS, "user": MEMBERS[:3], "client": ("tenant", "client_id"), "tenant": ("tenant",)}[mode]
    assert COMPARED[mode] == wanted
    for changed in product([False, True], repeat=4):
        other = {name: "other" for name, differs in zip(MEMBERS, changed, strict=True) if differs}
        found = differences(ANA, msgspec.structs.replace(ANA, **other), mode)
        assert found == tuple(name for name in wanted if name in other)
        assert BindingCheck(mode=mode, differs=found).matches == (not found)


@pytest.mark.requirement("A1")
def test_members_are_compared_one_by_one_never_joined() -> None:
    """Design section 6: as a tuple, never as a joined string."""
    one = Binding(tenant="a", iss="b|c", sub="d", client_id="e")
    other = Binding(tenant="a", iss="b", sub="c|d", client_id="e")
    assert differences(one, other) == ("iss", "sub")
    assert differences(one, msgspec.structs.replace(one, sub="D")) == ("sub",)


@pytest.mark.requirement("A1")
def test_the_identity_context_is_tenant_issuer_subject_and_client() -> None:
    """Absent members are empty, and an absent one is not any other."""
    assert identity(authority()) == ANA
    nobody = Authority(trigger=Trigger.CALLER, tenant="acme")
    assert identity(nobody) == Binding(tenant="acme", iss="", sub="", client_id="")
    assert differences(ANA, identity(nobody)) == ("iss", "sub", "client_id")


@pytest.mark.requirement("A1", "A5")
@pytest.mark.parametrize("level", list(Level))
def test_what_is_only_claimed_never_decides(level: Level) -> None:
    """Design section 6: claimed facts never decide; the others do, and stay what they are."""
    claimed = Binding(tenant="acme", iss="", sub="", client_id="")
    assert identity(authority(level=level)) == (claimed if level is Level.CLAIMED else ANA)
