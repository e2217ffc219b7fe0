"""The documents say what the code does: settings are documented, links lead somewhere, README's server runs."""

import re
from pathlib import Path

import msgspec
import pytest
from typer.core import TyperGroup
from typer.main import get_command

from tasktrail.events.authority import Level
from tasktrail.projections.audit import timeline
from tasktrail.services import terminal
from tasktrail.services.settings import DESCRIBED, ENV_PREFIX, Settings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_setting_is_described_and_documented_with_its_default() -> None:
    """Style 13: every setting is documented or a test fails."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for field in msgspec.structs.fields(Settings):
        row = f"| `{field.name}` | `{ENV_PREFIX}{field.name.upper()}` |"
        assert row in page, f"docs/configuration.md lacks a row that begins {row}"
        assert DESCRIBED[field.name] in page
        if isinstance(field.default, int) and not isinstance(field.default, bool):
            line = next(line for line in page.splitlines() if line.startswith(row))
            assert f"| {field.default} |" in line, f"{field.name}: {line} does not say {field.default}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_field_of_the_timeline_document_is_documented() -> None:
    """Issue: `--json` is stable and documented."""
    page = (ROOT / "docs" / "timeline.md").read_text(encoding="utf-8")
    for struct in (timeline.Timeline, timeline.TaskShown, timeline.Creator, timeline.Step, timeline.Who, timeline.Gap):
        for field in struct.__struct_fields__:
            assert f"`{field}`" in page, f"docs/timeline.md does not name {struct.__name__}.{field}"
    for kind in timeline.StepKind:
        assert kind.value in page
    for level in Level:
        assert f"| {level.value} | " in page


def test_every_command_and_its_options_are_documented() -> None:
    """Style 13: every command is documented or a test fails."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    group = get_command(terminal.app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        assert f"| `tasktrail {name}" in page, f"docs/cli.md lacks `tasktrail {name}`"
        for option in (one for parameter in command.params for one in parameter.opts if one.startswith("--")):
            assert f"`{option}" in page, f"docs/cli.md does not name {option} of {name}"
