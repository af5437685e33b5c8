#!/usr/bin/env python3
"""An upgradable MCP server over streamable HTTP: pip install mcp uvicorn handoff-service.

The service file needs mode = "overlap" and a listener called main. The old process finishes running calls,
event streams end cleanly, and the new process takes over the sessions.
"""

import asyncio
import json
import sys
import uuid

import uvicorn
from handoff_service import aio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

VERSION = "1.0.0"
#: The format of the handed-over state.
FORMAT = 1
#: How long a request with an unknown session waits for the predecessor to hand that session over.
HOLD_SECONDS = 5.0
#: How long a drain waits for idle connections: uvicorn's own keep-alive time.
LINGER_SECONDS = 5.0
SESSION = b"mcp-session-id"

mcp = MCPServer("example", version=VERSION)


@mcp.tool()
async def version(seconds: float = 0) -> str:
    """Returns the version, after the given number of seconds."""
    await asyncio.sleep(seconds)
    return VERSION


@mcp.tool()
async def remember(note: str, context: Context) -> list[str]:
    """Stores a note for the life of the session, and returns all notes."""
    session = (context.headers or {}).get(SESSION.decode())
    if session is None:
        raise ValueError("this connection has no session")
    return sessions.remember(session, note)


class Sessions:
    """The sessions of clients, around the SDK's application, which is stateless.

    While this process drains, clients use both processes. So it hands the table over at once, and again after
    each change. The new process adds the entries that it lacks, so nothing is lost; a client that reuses an
    old connection does not yet see its changes from a new one.
    """

    def __init__(self, app):
        self.app = app
        self.notes = {}
        self.streams = set()
        self.service = None
        self.is_draining = False

    def serve(self, service):
        self.service = service
        #: Whether no more sessions can arrive from a predecessor.
        self.is_complete = service.generation <= 1
        self.news = asyncio.Event()

    def remember(self, session, note):
        self.notes.setdefault(session, []).append(note)
        self.has_changed()
        return self.notes[session]

    def has_changed(self):
        if self.is_draining:
            self.hand_over()

    def hand_over(self, is_last=False):
        self.service.hand_over(FORMAT, json.dumps({"notes": self.notes, "is_last": is_last}).encode())

    def take_over(self, state):
        if state.format != FORMAT:
            raise ValueError(f"sessions in format {state.format}: this version supports {FORMAT}")
        found = json.loads(state.content)
        for session, notes in found["notes"].items():
            known = self.notes.setdefault(session, [])
            known[:] = notes + [note for note in known if note not in notes]
        self.is_complete = found["is_last"]
        self.news.set()
        self.news = asyncio.Event()

    async def knows(self, session):
        until = asyncio.get_running_loop().time() + HOLD_SECONDS
        while session not in self.notes and not self.is_complete:
            try:
                await asyncio.wait_for(self.news.wait(), until - asyncio.get_running_loop().time())
            except asyncio.TimeoutError:
                break
        return session in self.notes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        session = dict(scope["headers"]).get(SESSION, b"").decode("latin-1")
        if session and not await self.knows(session):
            return await answer(send, 404, b"the session is unknown: initialize a new one")
        if session and scope["method"] == "DELETE":
            self.notes.pop(session, None)
            self.has_changed()
            return await answer(send, 200)
        body = await read(receive)
        request = parse(body)
        headers = []
        if request.get("method") == "initialize":
            session = uuid.uuid4().hex
            self.notes[session] = []
            self.has_changed()
            headers.append((SESSION, session.encode()))
        exchange = Exchange(body, receive, send, headers, self)
        is_endless = scope["method"] == "GET" or request.get("method") == "subscriptions/listen"
        if is_endless:
            self.streams.add(exchange)
            if self.is_draining:
                exchange.end()
        try:
            await self.app(scope, exchange.receive, exchange.send)
            await exchange.finish()
        finally:
            self.streams.discard(exchange)

    def drain(self):
        self.is_draining = True
        self.hand_over()
        for stream in list(self.streams):
            stream.end()

    def resume(self):
        self.is_draining = False


class Exchange:
    """One request and its response. A stream can be ended cleanly, and a response can ask for a new
    connection.
    """

    def __init__(self, body, receive, send, headers, sessions):
        self.body = body
        self.from_client, self.to_client = receive, send
        self.headers, self.sessions = headers, sessions
        self.is_ended = asyncio.Event()
        self.is_open = False

    def end(self):
        self.is_ended.set()

    async def receive(self):
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body}
        jobs = [asyncio.ensure_future(self.from_client()), asyncio.ensure_future(self.is_ended.wait())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            return {"type": "http.disconnect"} if self.is_ended.is_set() else jobs[0].result()
        finally:
            for job in jobs:
                job.cancel()

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.is_open = True
            headers = [*message["headers"], *self.headers]
            if self.sessions.is_draining:
                # The SDK asks to keep the connection of a stream.
                headers = [(name, value) for name, value in headers if name.lower() != b"connection"]
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif not message.get("more_body"):
            self.is_open = False
        await self.to_client(message)

    async def finish(self):
        """A stream that was ended has not reported that to its client."""
        if self.is_open:
            await self.send({"type": "http.response.body", "body": b""})


async def answer(send, status, body=b""):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def read(receive):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


def parse(body):
    try:
        request = json.loads(body)
    except ValueError:
        request = None
    return request if isinstance(request, dict) else {}


sessions = Sessions(mcp.streamable_http_app(stateless_http=True))


class Server(aio.Handlers):
    def __init__(self, service):
        self.service = service
        self.listener = service.listeners["main"]
        sessions.serve(service)

    async def open(self):
        self.http = uvicorn.Server(uvicorn.Config(sessions, log_level="warning", lifespan="on"))
        # uvicorn closes its socket, and the listener must stay open.
        self.serving = asyncio.create_task(self.http._serve([self.listener.dup()]))
        while not self.http.started and not self.serving.done():
            await asyncio.sleep(0.01)
        if self.serving.done():
            await self.serving
            raise RuntimeError("uvicorn did not start; its log says why")

    async def take_over(self, state):
        sessions.take_over(state)

    async def drain(self, grace):
        sessions.drain()
        # Clients use their idle connections once more, and the response asks for a new one.
        until = asyncio.get_running_loop().time() + LINGER_SECONDS
        state = self.http.server_state
        while state.tasks or (state.connections and asyncio.get_running_loop().time() < until):
            await asyncio.sleep(0.01)

    async def seal(self, cut):
        # Stops accepting, closes each connection after its response, and waits for running calls.
        self.http.should_exit = True
        await self.serving
        sessions.hand_over(is_last=True)

    async def resume(self):
        sessions.resume()
        if self.serving.done():
            await self.open()


async def main():
    async with await aio.start(bind={"main": ("127.0.0.1", 8000)}, version=VERSION) as service:
        await service.begin()
        server = Server(service)
        await server.open()
        await service.ready(server)
    return await service.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
