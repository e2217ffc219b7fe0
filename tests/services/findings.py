"""What `tasktrail doctor` finds, check by check: for its tests."""

from tasktrail.services.doctor.findings import Finding, Report, Severity

UNSAFE, NOTICE, NOT_CHECKED, WELL = Severity.UNSAFE, Severity.NOTICE, Severity.NOT_CHECKED, Severity.WELL


def by_check(findings: Report | list[Finding]) -> dict[str, Severity]:
    """The worst of each check."""
    found = findings.findings if isinstance(findings, Report) else tuple(findings)
    order = list(Severity)
    worst: dict[str, Severity] = {}
    for one in found:
        worst[one.check] = min(worst.get(one.check, WELL), one.severity, key=order.index)
        assert one.seen
        assert one.severity is not UNSAFE or one.remedy, f"{one.check} has no remedy"
    return worst
