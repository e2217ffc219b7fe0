"""Cedar policies: who may do what, in a language that auditors read.

Guarantees: without a permit nothing is allowed, and a policy that cannot be read or fails while it is evaluated denies;
a policy is valid against `policies/tasktrail.cedarschema` before it decides anything; a decision carries the digest of
the policy and every attribute it was made from, so that `explain` makes it again, under then's or another text. What a
policy says comes after the comparison with the creator, which is made in code: it can only deny more. Needs `cedarpy`.

    policies = Policies()  # the shipped policy decides until another is activated
    policies.activate(text, "2026-11")
    policies.decide(Action.GET, authority, about=task, binding=check).effect  # "allow" or "deny"
"""

import functools
import hashlib
import logging
import re
from collections.abc import Callable
from enum import StrEnum
from importlib.resources import files
from typing import NamedTuple

import cedarpy
import msgspec

from tasktrail.events.authority import Attribute, Authority, BindingCheck, PolicyDecision
from tasktrail.events.errors import InvalidRequest
from tasktrail.events.task import Task
from tasktrail.services import clock
from tasktrail.services.access import policy_text
from tasktrail.services.access.policy_inputs import Inputs, Making, cedar_request, inputs_of

__all__ = [
    "DENIED_BY_DEFAULT",
    "FAILED",
    "SHIPPED_VERSION",
    "UNREADABLE",
    "Action",
    "InvalidPolicy",
    "Making",
    "Policies",
    "check",
    "explain",
    "schema",
    "schema_sha256",
    "shipped",
]

SHIPPED_VERSION = "shipped-1"
"""The version of the policy that tasktrail ships."""

DENIED_BY_DEFAULT, FAILED, UNREADABLE = "no-policy-permits", "policy-error", "no-readable-policy"
"""Reasons of denials that no policy asked for: none permits; one failed while it was evaluated; there is none."""

DECISIONS_KEPT = 4096
_ID_IN_ERROR = re.compile(r"policy `policy(\d+)`")
_log = logging.getLogger(__name__)


class Action(StrEnum):
    """What is decided; the actions of the schema, by the same names."""

    CREATE = "createTask"
    GET = "getTask"
    UPDATE = "answerInput"
    CANCEL = "cancelTask"
    SUBSCRIBE = "subscribe"
    CONTINUE = "continue"
    PAUSE = "pause"
    READ = "readTrail"
    UNSEAL = "unsealPayload"
    REVOKE = "revoke"
    GRANT = "grant"
    HOLD = "hold"
    ACTIVATE = "activatePolicy"


class InvalidPolicy(InvalidRequest):
    """The text is no policy that may decide; `problems` are what is wrong with it, by line where that is known."""

    reason = "invalid_policy"

    def __init__(self, problems: list[str]) -> None:
        told = "; ".join(problems)
        super().__init__(f"this is no valid policy, and nothing was activated: {told}")
        self.problems = problems


class _Parsed(NamedTuple):
    """A text as Cedar holds it, and the `@id`s of its policies in the order of the text."""

    text: str
    sha256: str
    handle: cedarpy.PolicySet
    ids: tuple[str, ...]


@functools.cache
def _schema() -> cedarpy.Schema:
    return cedarpy.Schema.from_str(schema())


def _file(name: str) -> str:
    return (files("tasktrail.services.access") / "policies" / name).read_text(encoding="utf-8")


def shipped() -> str:
    """The text of the policy that tasktrail ships."""
    return _file("default.cedar")


def schema() -> str:
    """The text of the schema that policies are valid against: what they can see, and who does what to what."""
    return _file("tasktrail.cedarschema")


def schema_sha256() -> str:
    """The hex SHA-256 of the schema's text."""
    return hashlib.sha256(schema().encode()).hexdigest()


def check(text: str) -> list[str]:
    """What is wrong with a policy's text, each beginning with `line N: ` where that is known; empty when it may decide.

    Strictly against the schema. A policy needs an `@id`, its own: decisions name it.
    """
    return policy_text.problems(text, _schema(), {DENIED_BY_DEFAULT, FAILED, UNREADABLE})


def _parsed(text: str) -> _Parsed:
    """The text, ready to decide.

    Raises:
        InvalidPolicy: it cannot be read. Whether it is valid against the schema is `check`'s question.
    """
    if unsafe := policy_text.unreadable(text):
        raise InvalidPolicy(unsafe)
    return _Parsed(
        text=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        handle=cedarpy.PolicySet.from_str(text),
        ids=policy_text.ids(text),
    )


class Policies:
    """The policy that decides now. Not for several threads at once.

    `now` is the wall clock in epoch milliseconds: policies see the age of a task.
    """

    def __init__(self, now: Callable[[], int] = clock.now_ms) -> None:
        self._now = now
        self._version = ""
        self._parsed: _Parsed | None = None
        self._kept: dict[tuple[object, ...], PolicyDecision] = {}
        self._failed: set[str] = set()
        self.activate(shipped(), SHIPPED_VERSION)

    @property
    def text(self) -> str:
        """The Cedar text that decides; empty when there is none that can be read."""
        return self._parsed.text if self._parsed else ""

    @property
    def version(self) -> str:
        """What the operator calls it."""
        return self._version

    @property
    def sha256(self) -> str:
        """The hex SHA-256 of the text's UTF-8 bytes."""
        return self._parsed.sha256 if self._parsed else ""

    def activate(self, text: str, version: str) -> None:
        """From here on `text` decides.

        Raises:
            InvalidPolicy: it is not valid; what decided before still does.
        """
        if problems := check(text):
            raise InvalidPolicy(problems)
        self._parsed, self._version = _parsed(text), version
        self._kept.clear()
        self._failed.clear()

    def lose(self, why: str) -> None:
        """There is no policy that can be read: from here on everything is denied, until one is activated."""
        _log.error("everything is denied from now on, for want of a readable policy: %s", why)
        self._parsed, self._version = None, ""
        self._kept.clear()
        self._failed.clear()

    def decide(
        self,
        action: Action,
        authority: Authority,
        *,
        about: Task | Making | None,
        binding: BindingCheck | None = None,
        rights: tuple[str, ...] = (),
    ) -> PolicyDecision:
        """Whether `authority` may do this, and why.

        `about` is the task; what is about to be created; or None for the trail, or the part of it that is
        `authority.tenant`'s. `binding` is the comparison with the task's creator, `authority.grant` the grant that
        opens the task to somebody else. `rights` are the operator's, as configured.
        """
        inputs = inputs_of(action, authority, about, binding or authority.binding, rights, self._now())
        key = tuple(inputs.items())
        known = self._kept.get(key)
        if known is not None:
            return known
        decided = self._decided(action, inputs)
        if len(self._kept) >= DECISIONS_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = decided
        return decided

    def _decided(self, action: Action, inputs: Inputs) -> PolicyDecision:
        if self._parsed is None:
            return _recorded(inputs, "deny", UNREADABLE, ())
        effect, reason, policies, why = _evaluated(self._parsed, inputs)
        if why and action not in self._failed:
            self._failed.add(action)
            _log.error("policy %s denies %s: %s fails: %s", self._version, action, ", ".join(policies) or "it", why)
        decided = _recorded(inputs, effect, reason, policies)
        return msgspec.structs.replace(decided, policy_sha256=self._parsed.sha256, policy_version=self._version)


class _Evaluated(NamedTuple):
    effect: str
    reason: str
    policies: tuple[str, ...]
    failure: str


def _evaluated(parsed: _Parsed, inputs: Inputs) -> _Evaluated:
    """What the policies say; any that fails denies, because Cedar itself would leave it out, a `forbid` too."""
    try:
        request, entities = cedar_request(inputs)
        said = cedarpy.is_authorized(request, parsed.handle, entities, _schema())
    except ValueError as error:  # text that is no text, such as a lone surrogate
        return _Evaluated("deny", FAILED, (), str(error))
    diagnostics = said.diagnostics
    if diagnostics.errors or said.decision is cedarpy.Decision.NoDecision:
        failure = "; ".join(diagnostics.errors)
        failed = {parsed.ids[int(number)] for number in _ID_IN_ERROR.findall(failure)}
        return _Evaluated("deny", FAILED, tuple(sorted(failed)), failure)
    named = diagnostics.id_annotations_by_reason
    policies = tuple(sorted({named.get(one) or one for one in diagnostics.reasons}))
    return _Evaluated("allow" if said.allowed else "deny", policies[0] if policies else DENIED_BY_DEFAULT, policies, "")


def _recorded(inputs: Inputs, effect: str, reason: str, policies: tuple[str, ...]) -> PolicyDecision:
    return PolicyDecision(effect=effect, reason=reason, policies=policies, inputs=inputs, input_sha256=_digest(inputs))


def _digest(inputs: dict[str, Attribute]) -> str:
    """The hex SHA-256 of the inputs as JSON: keys in order, no spaces, UTF-8."""
    try:
        return hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()
    except ValueError:  # no text: such an entry cannot be written either
        return ""


def explain(decision: PolicyDecision, action: str, text: str) -> PolicyDecision:
    """The decision made again under `text`, from the inputs that `decision` recorded.

    `action` is the action decided; empty for the recorded one. The answer's version is the recorded one's when the
    text is the same policy, else empty.

    Raises:
        InvalidRequest: the decision recorded no inputs, as those made in code do not; or there is no such action.
        InvalidPolicy: the text cannot be read.
    """
    inputs = dict(decision.inputs)
    if not inputs:
        message = f"this decision ({decision.reason}) was made in code, not by a policy: it recorded no inputs"
        raise InvalidRequest(message)
    inputs["action"] = action or inputs.get("action", "")
    if inputs["action"] not in set(Action):
        message = f"{inputs['action']!r} is no action of a policy; use one of {', '.join(Action)}"
        raise InvalidRequest(message)
    parsed = _parsed(text)
    effect, reason, policies, _ = _evaluated(parsed, inputs)
    same = parsed.sha256 == decision.policy_sha256
    return msgspec.structs.replace(
        _recorded(inputs, effect, reason, policies),
        policy_sha256=parsed.sha256,
        policy_version=decision.policy_version if same else "",
    )
