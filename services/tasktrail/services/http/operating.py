"""The routes of operators: what they order, and what they are told. Under `/api/v1`, beside the reading ones.

Guarantees: each order is a body of strict JSON with a reason; a token to revoke, and a task's id, travel in a body
only; who orders is the operator whose token the edge recognised. Right and policy are checked by what is called.

    Router("/api/v1", route_handlers=[…, *routes(operating, policing)])
"""

from typing import Annotated, Any, TypeAlias

from litestar import Request, get, post
from litestar.datastructures import State
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromQuery, JSONBody, QueryParameter

from tasktrail.services.http.documented import MAYBE, NO_TASK, NOT_JSON, REFUSALS, REFUSED, TOO_LARGE, refusal
from tasktrail.services.http.edge import asker
from tasktrail.services.operating import Operating
from tasktrail.services.orders import (
    TASKS_MAX,
    Activated,
    Became,
    CancelOrder,
    Explained,
    ExplainOrder,
    Governed,
    GrantOrder,
    HandleFilter,
    HandleShown,
    HoldOrder,
    Lifted,
    LiftOrder,
    PolicyOrder,
    PolicyShown,
    ReleaseOrder,
    RevocationShown,
    Revoked,
    RevokeOrder,
    WithdrawOrder,
)
from tasktrail.services.policing import Policing

HANDLES_DEFAULT = 100
_TEXT_MAX = 2_048

_Request: TypeAlias = Request[Any, Any, State]
_Text: TypeAlias = Annotated[str | None, QueryParameter(max_length=_TEXT_MAX)]
_ORDERED = {**REFUSALS, 413: TOO_LARGE, 415: NOT_JSON, 504: MAYBE}
_ON_TASK = {**_ORDERED, 404: NO_TASK, 409: REFUSED}


def routes(operating: Operating, policing: Policing) -> list[HTTPRouteHandler]:
    """All of them, for a router at `/api/v1`."""
    return [*_revoking(operating), *_handles(operating), *_granting(operating), *_policing(policing)]


def _revoking(operating: Operating) -> list[HTTPRouteHandler]:
    lifted = {**_ORDERED, 404: refusal("No revocation that holds has this id.")}

    @get("/revocations", responses=REFUSALS)
    async def revocations(request: _Request) -> list[RevocationShown]:
        """The revocations that hold. The reading is recorded on the trail."""
        return await operating.revocations(asker(request.scope))

    @post("/revocations", status_code=200, responses=_ON_TASK)
    async def revoke(request: _Request, data: JSONBody[RevokeOrder]) -> Revoked:
        """Refuse a principal, a client, a token or a handle from now on. Needs the right `revoke`."""
        return await operating.revoke(data, asker(request.scope))

    @post("/revocations/lift", status_code=200, responses=lifted)
    async def lift(request: _Request, data: JSONBody[LiftOrder]) -> Lifted:
        """End a revocation; handles revoked and tasks cancelled in its wake stay so. Needs the right `revoke`."""
        return await operating.lift(data, asker(request.scope))

    return [revocations, revoke, lift]


def _handles(operating: Operating) -> list[HTTPRouteHandler]:
    @get("/handles", responses=REFUSALS)
    async def handles(  # noqa: PLR0913, PLR0917 - one for each documented parameter
        request: _Request,
        tenant: _Text = None,
        server: _Text = None,
        tool: _Text = None,
        iss: _Text = None,
        sub: _Text = None,
        client_id: _Text = None,
        live: FromQuery[bool | None] = None,
        lapsed: FromQuery[bool | None] = None,
        limit: Annotated[int, QueryParameter(ge=1, le=TASKS_MAX)] = HANDLES_DEFAULT,
    ) -> list[HandleShown]:
        """Handles that still open something, or whose work still runs, the newest first. The reading is recorded."""
        wanted = HandleFilter(
            tenant=tenant,
            server=server,
            tool=tool,
            iss=iss,
            sub=sub,
            client_id=client_id,
            live=live,
            lapsed=lapsed,
        )
        return await operating.handles(wanted, limit, asker(request.scope))

    @post("/handles/cancel", status_code=200, responses=_ORDERED)
    async def cancel(request: _Request, data: JSONBody[CancelOrder]) -> list[Became]:
        """Stop these tasks; what became of each, in the order given. Needs the right `revoke`."""
        return await operating.cancel(data, asker(request.scope))

    return [handles, cancel]


def _granting(operating: Operating) -> list[HTTPRouteHandler]:
    @post("/grants", status_code=200, responses=_ON_TASK)
    async def grant(request: _Request, data: JSONBody[GrantOrder]) -> Governed:
        """Let somebody else than its creator use a handle. Needs the right `grant`."""
        return await operating.grant(data, asker(request.scope))

    @post("/grants/withdraw", status_code=200, responses=_ON_TASK)
    async def withdraw(request: _Request, data: JSONBody[WithdrawOrder]) -> Governed:
        """End a grant. Needs the right `grant`."""
        return await operating.withdraw(data, asker(request.scope))

    @post("/holds", status_code=200, responses=_ON_TASK)
    async def hold(request: _Request, data: JSONBody[HoldOrder]) -> Governed:
        """Keep a task's payloads, whatever their retention says. Needs the right `hold`."""
        return await operating.hold(data, asker(request.scope))

    @post("/holds/release", status_code=200, responses=_ON_TASK)
    async def release(request: _Request, data: JSONBody[ReleaseOrder]) -> Governed:
        """End a hold that another operator placed. Needs the right `hold`."""
        return await operating.release(data, asker(request.scope))

    return [grant, withdraw, hold, release]


def _policing(policing: Policing) -> list[HTTPRouteHandler]:
    explained = {**_ORDERED, 404: refusal("Nothing on the trail has this entry id.")}

    @get("/policy", responses=REFUSALS)
    async def policy(request: _Request) -> PolicyShown:
        """The policy that decides now. The reading is recorded on the trail."""
        return await policing.show(asker(request.scope))

    @post("/policy", status_code=200, responses=_ORDERED)
    async def activate(request: _Request, data: JSONBody[PolicyOrder]) -> Activated:
        """Decide by this Cedar policy from now on; one that is not valid changes nothing. Needs the right `policy`."""
        return await policing.activate(data, asker(request.scope))

    @post("/policy/explain", status_code=200, responses=explained)
    async def explain(request: _Request, data: JSONBody[ExplainOrder]) -> Explained:
        """Make the decision of an entry again, under the policy of then or of today. The reading is recorded."""
        return await policing.explain(data, asker(request.scope))

    return [policy, activate, explain]
