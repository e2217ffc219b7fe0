"""Keys of ours for machines. Source: issue 3 (API keys for machines), `configuration.ApiKey`."""

import hashlib

import pytest

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.access.keys import Keys
from tasktrail.services.configuration import ApiKey


def key(name: str, presented: str) -> ApiKey:
    return ApiKey(name=name, sha256=hashlib.sha256(presented.encode()).hexdigest())


def test_a_key_is_found_by_its_whole_text_only() -> None:
    """The digest is configured, never the key."""
    keys = Keys([key("batch", "first"), key("cron", "second")])
    assert [found.name if (found := keys.find(one)) else None for one in ("first", "second")] == ["batch", "cron"]
    digest = hashlib.sha256(b"first").hexdigest()
    assert [one for one in ("", "firs", "first ", "First", digest, "é", "\ud800") if keys.find(one)] == []


def test_a_key_is_configured_once() -> None:
    """Two names for one key would be two answers to who called."""
    with pytest.raises(InvalidRequest, match="name"):
        Keys([key("batch", "first"), key("batch", "second")])
    with pytest.raises(InvalidRequest, match="sha256"):
        Keys([key("batch", "first"), key("cron", "first")])
