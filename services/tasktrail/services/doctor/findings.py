"""What the doctor says: a finding for each check, and the report of all of them.

Guarantees: every check that was made or could not be made has at least one finding; an unsafe one has a remedy; no
finding holds a secret.

    Finding(check="anonymous callers", severity=Severity.UNSAFE, seen="…", remedy="…")
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class Severity(StrEnum):
    """How bad it is. `unsafe`: change it before strangers can reach this deployment. `notice`: know it."""

    UNSAFE = "unsafe"
    NOTICE = "notice"
    NOT_CHECKED = "not checked"
    WELL = "well"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check saw, and what to do about it; `remedy` is empty where there is nothing to do."""

    check: str
    severity: Severity
    seen: str
    remedy: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All findings about one deployment, the worst first; `unsafe` counts those that are."""

    data: str
    broker: str
    unsafe: int
    findings: tuple[Finding, ...]


def report(data: str, broker: str, findings: Iterable[Finding]) -> Report:
    """The findings in order of severity, within one in the order they were made."""
    order = list(Severity)
    found = tuple(sorted(findings, key=lambda one: order.index(one.severity)))
    unsafe = sum(one.severity is Severity.UNSAFE for one in found)
    return Report(data=data, broker=broker, unsafe=unsafe, findings=found)


def unsafe(check: str, seen: str, remedy: str) -> Finding:
    """Must be changed."""
    return Finding(check=check, severity=Severity.UNSAFE, seen=seen, remedy=remedy)


def notice(check: str, seen: str, remedy: str = "") -> Finding:
    """Should be known."""
    return Finding(check=check, severity=Severity.NOTICE, seen=seen, remedy=remedy)


def not_checked(check: str, why: str, remedy: str = "") -> Finding:
    """Could not be looked at."""
    return Finding(check=check, severity=Severity.NOT_CHECKED, seen=why, remedy=remedy)


def well(check: str, seen: str) -> Finding:
    """As it should be."""
    return Finding(check=check, severity=Severity.WELL, seen=seen)
