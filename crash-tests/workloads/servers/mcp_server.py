"""A small MCP server: `app` is what uvicorn and gunicorn serve.

WORKLOAD_VERSION is the version that it tells. WORKLOAD_STATELESS=1 lets clients of the older protocol go without
sessions, as servers of several processes need it. WORKLOAD_BAD=answers makes a bad version: it starts, and answers 500.
"""

import asyncio
import os

from mcp.server.mcpserver import Context, MCPServer
from starlette.requests import Request
from starlette.responses import PlainTextResponse

VERSION = os.environ.get("WORKLOAD_VERSION", "none")

server = MCPServer("workload", version=VERSION)


@server.tool()
async def echo(message: str) -> str:
    """Gives back what it gets."""
    return message


@server.tool()
async def version() -> str:
    """Says which version answers."""
    return VERSION


@server.tool()
async def slow(seconds: float, steps: int, ctx: Context) -> str:
    """Takes its time, and tells after each step how far it is."""
    for step in range(steps):
        await asyncio.sleep(seconds / steps)
        await ctx.report_progress(step + 1, steps)
    return f"{steps} steps"


@server.custom_route("/version", methods=["GET"])
async def version_page(_: Request) -> PlainTextResponse:
    """The same for those who do not speak MCP."""
    if os.environ.get("WORKLOAD_BAD") == "answers":
        return PlainTextResponse("broken", status_code=500)
    return PlainTextResponse(VERSION, headers={"x-version": VERSION})


app = server.streamable_http_app(stateless_http=os.environ.get("WORKLOAD_STATELESS") == "1")
