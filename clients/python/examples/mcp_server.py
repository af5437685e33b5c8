#!/usr/bin/env python3
"""An MCP server over streamable HTTP that can be upgraded: pip install mcp uvicorn handoff-service.

The service file says mode = "overlap" and has a listener called main. Calls that run are finished by the old process.
"""

import asyncio
import sys

import uvicorn
from handoff_service import aio
from mcp.server import MCPServer

VERSION = "1.0.0"

mcp = MCPServer("example", version=VERSION)


@mcp.tool()
async def version(seconds: float = 0) -> str:
    """Which version answers, after so many seconds."""
    await asyncio.sleep(seconds)
    return VERSION


class Server(aio.Handlers):
    def __init__(self, listener):
        self.listener = listener

    async def open(self):
        # No session lives in this process, so any process can take the next request of a client.
        app = mcp.streamable_http_app(stateless_http=True)
        self.http = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
        # uvicorn closes what it gets, and the listener is to be kept.
        self.serving = asyncio.create_task(self.http._serve([self.listener.dup()]))
        while not self.http.started and not self.serving.done():
            await asyncio.sleep(0.01)
        if self.serving.done():
            await self.serving
            raise RuntimeError("uvicorn did not start; its log says why")

    async def drain(self, grace):
        while self.http.server_state.tasks:
            await asyncio.sleep(0.01)

    async def seal(self, cut):
        # Stops accepting, ends each connection behind its response, and waits for the calls that run.
        self.http.should_exit = True
        await self.serving

    async def resume(self):
        if self.serving.done():
            await self.open()


async def main():
    async with await aio.start(bind={"main": ("127.0.0.1", 8000)}) as service:
        await service.begin()
        server = Server(service.listeners["main"])
        await server.open()
        await service.ready(server)
    return await service.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
