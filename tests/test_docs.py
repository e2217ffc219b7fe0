"""The documents say what the code does: settings are documented, links lead somewhere, README's server runs."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from tasktrail.events.authority import BindingMode, Level
from tasktrail.projections.audit import timeline
from tasktrail.services import terminal
from tasktrail.services.configuration import ALGORITHMS, RIGHTS
from tasktrail.services.configuration_file import LISTS, TABLES
from tasktrail.services.settings import DESCRIBED, ENV_PREFIX, FLAT, Settings, check

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def default_of(field: msgspec.structs.FieldInfo) -> str:
    """A field's default as the page writes it."""
    default = field.default_factory() if field.default is msgspec.NODEFAULT and not field.required else field.default
    if field.required:
        return "required"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ", ".join(str(one) for one in cast("tuple[object, ...]", default))
    return "" if default is None or default == {} else str(default)


def range_of(kind: Any) -> str:  # noqa: ANN401 - a type
    """The bounds of a number as the page writes them; empty for other types."""
    told: dict[str, Any] = msgspec.json.schema(kind, schema_hook=lambda _: {"type": "string"})
    number = next((one for one in (told, *told.get("anyOf", ())) if "minimum" in one), None)
    if number is None:
        return ""
    return f"{number['minimum']} to {number['maximum']}" if "maximum" in number else f"{number['minimum']} or more"


def section(page: str, heading: str) -> str:
    """The text under a heading of the second level."""
    assert f"\n## {heading}\n" in page, f"docs/configuration.md has no section {heading}"
    return page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_setting_is_documented_with_its_default_and_range() -> None:
    """Style 13: every setting is documented or a test fails."""
    told = section((ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), "[service]")
    for field in msgspec.structs.fields(Settings):
        if field.name in FLAT:
            name = f"| `{field.name}` | `{ENV_PREFIX}{field.name.upper()}` |"
            row = f"{name} {default_of(field)} | {range_of(field.type)} | {DESCRIBED[field.name]} |"
            assert row.replace("  ", " ") in told.replace("  ", " "), f"docs/configuration.md lacks: {row}"


@pytest.mark.parametrize("name", [*LISTS, *TABLES])
def test_every_field_of_every_table_is_documented_with_its_default_and_range(name: str) -> None:
    """Issue 3: docs/configuration.md complete and checked by a test."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    told = section(page, f"[[{name}]]" if name in LISTS else f"[{name}]").replace("  ", " ")
    for field in msgspec.structs.fields({**LISTS, **TABLES}[name]):
        row = f"| `{field.name}` | {default_of(field)} | {range_of(field.type)} | ".replace("  ", " ")
        found = [line for line in told.splitlines() if line.startswith(row.rstrip())]
        assert found, f"docs/configuration.md lacks a row of {name} that begins: {row}"
        assert len(found[0]) > len(row) + 5, f"docs/configuration.md does not say what {name}.{field.name} is"


def test_the_words_of_the_configuration_are_all_documented() -> None:
    """What may stand in a list: rights, algorithms, bindings."""
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for word in (*RIGHTS, *ALGORITHMS, *BindingMode):
        assert f"`{word}`" in page, f"docs/configuration.md does not name {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_configuration_files_shown_are_right(page: Path, tmp_path: Path) -> None:
    """Style 13: docs are run."""
    for number, said in enumerate(re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
        path = tmp_path / f"{number}.toml"
        path.write_text(said, encoding="utf-8")
        assert check(path) == []


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


def commands(group: TyperGroup, above: str = "tasktrail") -> Iterator[tuple[str, TyperCommand]]:
    """Every command by its whole name, those of groups too."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, f"{above} {name}")
        else:
            assert isinstance(command, TyperCommand)
            yield f"{above} {name}", command


def test_every_command_and_its_options_are_documented() -> None:
    """Style 13: every command is documented or a test fails."""
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    group = get_command(terminal.app)
    assert isinstance(group, TyperGroup)
    for name, command in commands(group):
        assert f"| `{name}" in page, f"docs/cli.md lacks `{name}`"
        for option in (one for parameter in command.params for one in parameter.opts if one.startswith("--")):
            assert f"`{option}" in page, f"docs/cli.md does not name {option} of {name}"
