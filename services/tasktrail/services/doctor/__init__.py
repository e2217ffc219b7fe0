"""`tasktrail doctor`: what is unsafe about this deployment, what was seen, and the remedy.

Guarantees: changes nothing and stores nothing; contacts the configured broker, the configured issuers, the monitoring
address that was given and our own service, and nothing else; every check that could not be made says why; no secret is
printed. Works on a running service and, as far as files go, on a stopped one.

    report = run(effective(os.environ, data=Path(".tasktrail")))
    sys.stdout.write(text(report))
"""

import asyncio
import logging
import textwrap

from tasktrail.events.errors import InvalidRequest
from tasktrail.services.configuration_shown import without_passwords
from tasktrail.services.doctor import clocks, configured, files, messaging, reading_side
from tasktrail.services.doctor.findings import Finding, Report, Severity, not_checked, report
from tasktrail.services.service import AUDIT_FILE
from tasktrail.services.settings import Effective

_WIDTH = 100


def run(effective: Effective, *, monitor: str = "") -> Report:
    """Examine the deployment that these settings describe. `monitor`: monitoring addresses of external NATS servers."""
    quiet = logging.getLogger("tasktrail.services.connection")
    before, quiet.level = quiet.level, logging.ERROR  # what a connection complains of is a finding here
    try:
        return asyncio.run(examine(effective, monitor=monitor))
    finally:
        quiet.level = before


async def examine(effective: Effective, *, monitor: str = "") -> Report:
    """The same, on a running event loop."""
    settings = effective.settings
    found: list[Finding] = [
        *configured.of_settings(settings),
        *files.of_file(effective),
        *files.of_data(settings.data),
        *files.of_credentials(settings.nats_credentials),
        *files.of_credentials(settings.tlog.nats_credentials),
        *await clocks.of_issuers(settings.issuers),
    ]
    last: int | None = None
    try:
        async with messaging.Ward.enter(settings) as ward:
            found += await messaging.examine(ward)
            last = await messaging.last_sequence(ward)
    except (OSError, TimeoutError, InvalidRequest) as error:
        stopped = settings.embedded and isinstance(error, ConnectionRefusedError)
        why = "the embedded broker does not run" if stopped else str(error)
        remedy = "start tasktrail up, and ask again" if stopped else "start it, or correct its address or login"
        found += [not_checked(check, why, remedy) for check in messaging.CHECKS]
    if settings.embedded:
        found.append(messaging.of_own_sync(settings.data / "nats"))
    else:
        found += await messaging.of_monitored_sync(monitor)
    found += await reading_side.of_store(settings.data, settings.data / AUDIT_FILE, last)
    broker = "embedded" if settings.embedded else without_passwords(settings.nats_url)
    return report(str(settings.data), broker, found)


def text(shown: Report) -> str:
    """The report for a terminal: the worst first, what is well in one line each."""
    lines = [f"tasktrail doctor: data {shown.data}, broker {shown.broker}", ""]
    for finding in shown.findings:
        lines += _paragraph(f"{finding.severity.upper():<12}{finding.check}: ", finding.seen)
        if finding.remedy:
            lines += _paragraph(" " * 12 + "remedy: ", finding.remedy)
    count = {severity: sum(one.severity is severity for one in shown.findings) for severity in Severity}
    lines += ["", ", ".join(f"{number} {severity}" for severity, number in count.items())]
    return "\n".join(lines) + "\n"


def _paragraph(first: str, said: str) -> list[str]:
    return textwrap.wrap(
        f"{first}{said}", _WIDTH, subsequent_indent=" " * 14, break_long_words=False, break_on_hyphens=False
    )
