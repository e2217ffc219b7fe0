"""Who counts as one where bodies are counted by address."""

import pytest

from tasktrail.services.http.endpoint_requests import neighbourhood


@pytest.mark.requirement("P4")
@pytest.mark.parametrize(
    ("address", "whose"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_addresses_that_one_caller_has_count_as_one(address: str, whose: str) -> None:
    """RFC 6177: an end site of IPv6 has at least a /64."""
    assert neighbourhood(address) == whose
