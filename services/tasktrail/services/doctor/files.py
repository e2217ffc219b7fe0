"""What lies on this machine's disk: who can read the keys, tokens and passwords, and how full it is.

Guarantees: reads modes and sizes, and no secret; changes nothing. A file that is not there yet is no finding.

    findings = [*of_data(settings.data), *of_file(effective)]
"""

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from tasktrail.services.configuration_shown import without_passwords
from tasktrail.services.doctor.findings import Finding, not_checked, notice, unsafe, well
from tasktrail.services.responder import TOKEN_FILE
from tasktrail.services.settings import DEFAULT, ENVIRONMENT, MIB, Effective

SECRETS = (TOKEN_FILE, "adapter.json", "reader.json", "nats/credentials.json", "nats/nats.conf")
"""Files of the data directory that hold a secret, besides `keys/*`."""

OTHERS = 0o077
OTHERS_WRITE = 0o022
FREE_LEAST_BYTES = 512 * MIB
USED_MUCH, USED_MOST = 0.90, 0.97


def of_data(data: Path) -> Iterator[Finding]:
    """The data directory: who may read it, and the space it has."""
    try:
        any(data.iterdir())
    except OSError as error:
        remedy = "name it with --data, start tasktrail up, or run as the user who runs the service"
        yield not_checked("data directory", f"{data}: {error.strerror}", remedy)
        return
    yield from _directory(data)
    yield from _secrets(data)
    yield of_space(*_space(data), str(data))


def _directory(data: Path) -> Iterator[Finding]:
    mode = stat.S_IMODE(data.stat().st_mode)
    if mode & OTHERS:
        yield unsafe("data directory", f"{data} is open to others (mode {mode:04o})", f"run: chmod 700 {data}")
    else:
        yield well("data directory", f"only its owner can look into {data}")


def _secrets(data: Path) -> Iterator[Finding]:
    keys = data / "keys"
    try:
        found = [keys, *sorted(keys.iterdir())] if keys.is_dir() else []
        found += [data / name for name in SECRETS if (data / name).exists()]
        modes = [(path, stat.S_IMODE(path.stat().st_mode)) for path in found]
    except OSError as error:
        yield not_checked("keys and tokens", f"{data}: {error.strerror}", "run as the user who runs the service")
        return
    exposed = [(path, mode) for path, mode in modes if mode & OTHERS]
    for path, mode in exposed:
        wanted = "700" if path.is_dir() else "600"
        seen = f"{path} can be read by others (mode {mode:04o}); they may have a copy"
        yield unsafe("keys and tokens", seen, f"run: chmod {wanted} {path}, and replace what it holds")
    if not exposed:
        yield well("keys and tokens", f"only their owner can read the {len(modes)} of them")


def _space(path: Path) -> tuple[int, int]:
    usage = shutil.disk_usage(path)
    return usage.free, usage.total


def of_space(free: int, total: int, where: str) -> Finding:
    """How much of a disk is left; sizes in bytes. A trail that cannot grow refuses every command."""
    used = 1 - free / total if total else 1.0
    seen = f"{where}: {free // MIB} MiB free, {used:.0%} used"
    remedy = "free some, or move the data to a larger disk: with none left, every command is refused"
    if used > USED_MOST or free < FREE_LEAST_BYTES:
        return unsafe("disk", seen, remedy)
    return notice("disk", seen, remedy) if used > USED_MUCH else well("disk", seen)


def of_file(effective: Effective) -> Iterator[Finding]:
    """The configuration file: who can change whom we believe, and read a password that stands in it."""
    if effective.file is None:
        return
    mode = stat.S_IMODE(effective.file.stat().st_mode)
    written = {"[tlog] copies": ",".join(effective.settings.tlog.copies)}
    if _from_file(effective, "nats_url"):
        written["nats_url"] = effective.settings.nats_url
    passwords = [name for name, urls in written.items() if without_passwords(urls) != urls]
    if mode & OTHERS_WRITE:
        seen = f"{effective.file} can be changed by others (mode {mode:04o}): they decide who is believed"
        yield unsafe("configuration file", seen, f"run: chmod go-w {effective.file}")
    elif mode & OTHERS and passwords:
        seen = f"{effective.file} can be read by others (mode {mode:04o}) and {passwords[0]} holds a password"
        yield unsafe("configuration file", seen, f"run: chmod 600 {effective.file}, and change the password")
    else:
        yield well("configuration file", f"others cannot change {effective.file}")


def _from_file(effective: Effective, name: str) -> bool:
    return effective.origin[name] not in {DEFAULT, ENVIRONMENT}


def of_credentials(path: Path | None) -> Iterator[Finding]:
    """The NATS credentials file of an external deployment."""
    if path is None:
        return
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield unsafe("NATS credentials", f"{path}: {error.strerror}", "name a file that is there in nats_credentials")
        return
    if mode & OTHERS:
        yield unsafe("NATS credentials", f"{path} can be read by others (mode {mode:04o})", f"run: chmod 600 {path}")
    else:
        yield well("NATS credentials", f"only its owner can read {path}")
