"""How long a task lives and how long what it held is kept: the operator's to say, the requestor's only to wish.

Guarantees: pure; what is granted is more than nothing and never more than the cap of the tool's rules (`[[tools]]`, the
first that fits) or else of the service; who decided it is part of the answer, and the trail's. A wish of nothing, zero
or less is no wish. In the protocol of 2026-07-28 a client can wish no time to live: the wish is then the tool's own.

    life = granted(settings, "reports", "generate", "acme", wished_ms=86_400_000)
    life.granted_ms, life.set_by     # (3_600_000, "tool_rule")
"""

import msgspec

from tasktrail.events.authority import BindingMode
from tasktrail.services.configuration import Retention, Tool
from tasktrail.services.settings import Settings

TOOL, TOOL_RULE, SERVICE = "tool", "tool_rule", "service"
PAYLOADS = "payloads"
"""The name, beside the terminal statuses, under which a task keeps how long its payloads outlive its handle."""


class Lifetime(msgspec.Struct, frozen=True, kw_only=True):
    """What a creation gets, in milliseconds.

    `requested_ms` is the wish as it came, None for none. `set_by` is what decided `granted_ms`: `tool` (its wish was
    granted as it was), `tool_rule` (the default or cap of a `[[tools]]` table), `service` (the service's own).
    `retention` maps each terminal status to how long the handle then still opens the task, and `payloads` to how long
    after the handle's end the task's key is kept.
    """

    requested_ms: int | None
    granted_ms: int
    set_by: str
    retention: dict[str, int]
    binding: BindingMode


def granted(settings: Settings, server: str, tool: str, tenant: str, wished_ms: int | None) -> Lifetime:
    """What a task of this tool of this server gets in this tenant, when the tool wishes `wished_ms`."""
    rule = next((one for one in settings.tools if one.fits(server, tool, tenant)), Tool())
    cap_ms, capped_by = _either(rule.ttl_max_ms, settings.ttl_max_ms)
    if wished_ms is None or wished_ms <= 0:
        wish_ms, set_by = _either(rule.ttl_default_ms, settings.ttl_default_ms)
    else:
        wish_ms, set_by = wished_ms, TOOL
    return Lifetime(
        requested_ms=wished_ms,
        granted_ms=min(wish_ms, cap_ms),
        set_by=set_by if wish_ms <= cap_ms else capped_by,
        retention=_by_status(rule.retention or settings.retention),
        binding=rule.binding,
    )


def _either(of_rule_ms: int | None, of_service_ms: int) -> tuple[int, str]:
    return (of_rule_ms, TOOL_RULE) if of_rule_ms is not None else (of_service_ms, SERVICE)


def _by_status(kept: Retention) -> dict[str, int]:
    return {
        "completed": kept.completed_ms,
        "failed": kept.failed_ms,
        "cancelled": kept.cancelled_ms,
        PAYLOADS: kept.payloads_ms,
    }


def shred_at_ms(settings: Settings, expired_at_ms: int, retention: dict[str, int]) -> int:
    """When the key of a task whose handle ended then is to be destroyed, by what its creation was told."""
    return expired_at_ms + retention.get(PAYLOADS, settings.retention.payloads_ms)
