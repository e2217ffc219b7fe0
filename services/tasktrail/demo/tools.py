"""The demo's MCP server: eight tools of a small company, each of which shows one thing that happens to a task.

Guarantees: every caller needs a bearer token of a configured issuer, verified through its JWKS; every tool can run as a
task; `Floor` knows which tools were told to stop. This is what any MCP server looks like that uses tasktrail.

    mcp = build(target="data/adapter.json", url="http://127.0.0.1:8000/mcp", issuers=[…], floor=Floor())
"""

import asyncio
import warnings
from collections.abc import Sequence
from typing import Any

from mcp.server import MCPServer
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types import INTERNAL_ERROR, SamplingMessage, TextContent
from pydantic import AnyHttpUrl, BaseModel

from tasktrail.events.facts import TaskSupport
from tasktrail.mcp.extension import Tasks, ToolPolicy
from tasktrail.mcp.verifier import Issuer, JwtVerifier

SERVER = "back-office"
POLL_INTERVAL_MS = 100
EXPIRES_MS = 1_500


class Approval(BaseModel):
    """What is asked of whoever must approve."""

    approve: bool


class CostCentre(BaseModel):
    """Who pays."""

    cost_centre: str


class Floor:
    """What becomes of the tools themselves: those watched, by the label they are called with, say when they stop."""

    def __init__(self) -> None:
        self._stopped: dict[str, asyncio.Event] = {}

    def watch(self, label: str) -> asyncio.Event:
        """Set once the tool called with this label is stopped; ask before calling it."""
        return self._stopped.setdefault(label, asyncio.Event())

    async def work(self, label: str, ctx: Context[Any, Any], step_s: float) -> None:
        """Work for a very long time, in short steps, unless told to stop."""
        try:
            for step in range(3_600):
                await ctx.report_progress(step, 3_600, f"{label}: step {step} of 3600")
                await asyncio.sleep(step_s)
        except asyncio.CancelledError:
            if label in self._stopped:
                self._stopped.pop(label).set()
            raise


async def quarterly_report(quarter: str, ctx: Context[Any, Any]) -> str:
    """Write the report of a quarter, saying how far it is."""
    for step, part in enumerate(("collecting figures", "adding them up", "writing")):
        await ctx.report_progress(step, 3, f"{part} for {quarter}")
        await asyncio.sleep(0.5)
    return f"The report for {quarter}: revenue up, costs down."


async def reconcile(account: str) -> str:
    """Reconcile an account. It never balances."""
    await asyncio.sleep(0.2)
    message = f"the books of {account} do not balance"
    raise ToolError(message)


async def export_ledger(target: str) -> str:
    """Export the ledger. The other side never speaks the protocol."""
    await asyncio.sleep(0.2)
    raise MCPError(INTERNAL_ERROR, f"{target} does not speak the protocol")


async def pay_invoice(invoice: str, ctx: Context[Any, Any]) -> str:
    """Pay an invoice: needs an approval and a cost centre, asked at the same time."""
    approval, centre = await asyncio.gather(
        ctx.elicit(f"Pay {invoice}?", Approval), ctx.elicit(f"Which cost centre pays {invoice}?", CostCentre)
    )
    if approval.action == "accept" and approval.data.approve and centre.action == "accept":
        return f"{invoice} paid by {centre.data.cost_centre}"
    return f"{invoice} not paid"


async def delete_customer(customer: str, ctx: Context[Any, Any]) -> str:
    """Delete a customer's data, when its owner approves."""
    approval = await ctx.elicit(f"Delete everything about {customer}?", Approval)
    deleted = approval.action == "accept" and approval.data.approve
    return f"{customer} {'deleted' if deleted else 'kept'}"


async def summarise(document: str, ctx: Context[Any, Any]) -> str:
    """Have the client's model summarise a document."""
    message = SamplingMessage(role="user", content=TextContent(type="text", text=f"Summarise: {document}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)  # sampling is on its way out (SEP-2577), and still there
        answer = await ctx.session.create_message([message], max_tokens=100)  # pyright: ignore[reportDeprecated]
    return f"Summary: {answer.content.text if isinstance(answer.content, TextContent) else 'none'}"


def build(*, target: str, url: str, issuers: Sequence[Issuer], floor: Floor) -> MCPServer[Any]:
    """The server at `url`, its tasks kept by the tasktrail at `target`, its callers those of `issuers`."""

    async def rebuild_index(name: str, ctx: Context[Any, Any]) -> str:
        """Rebuild a search index: an hour's work."""
        await floor.work(name, ctx, 1.0)
        return f"index {name} rebuilt"

    async def nightly_backup(name: str, ctx: Context[Any, Any]) -> str:
        """Back something up: more work than its time to live allows."""
        await floor.work(name, ctx, 1.0)
        return f"{name} backed up"

    plain = ToolPolicy(support=TaskSupport.OPTIONAL, poll_interval_ms=POLL_INTERVAL_MS)
    brief = ToolPolicy(support=TaskSupport.REQUIRED, poll_interval_ms=POLL_INTERVAL_MS, ttl_ms=EXPIRES_MS)
    tools = (
        quarterly_report,
        reconcile,
        export_ledger,
        pay_invoice,
        delete_customer,
        summarise,
        rebuild_index,
        nightly_backup,
    )
    policies = {tool.__name__: brief if tool is nightly_backup else plain for tool in tools}
    tasks = Tasks.connect(target, server=SERVER, tools=policies)
    mcp: MCPServer[Any] = MCPServer(
        SERVER,
        extensions=[tasks],
        lifespan=tasks.lifespan,
        token_verifier=JwtVerifier(issuers),
        auth=AuthSettings(
            issuer_url=AnyHttpUrl(issuers[0].url), resource_server_url=AnyHttpUrl(url), validate_token_resource=True
        ),
        log_level="WARNING",
    )
    for tool in tools:
        mcp.add_tool(tool)
    return mcp
