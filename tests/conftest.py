"""What every test shares: a `requirement` marker names rows of requirements.toml, or nothing runs."""

import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["tasktrail.testing.plugin"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse a marker without an id, or with one that does not exist, also when a single file is run."""
    known = tomllib.loads(Path(__file__).with_name("requirements.toml").read_text(encoding="utf-8")).keys()
    for item in items:
        for marker in item.iter_markers("requirement"):
            if not marker.args or not known >= set(marker.args):
                message = f"{item.nodeid}: requirement{marker.args} names no row of tests/requirements.toml"
                raise pytest.UsageError(message)
