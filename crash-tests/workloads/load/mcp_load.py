"""Calls tools of an MCP server with the official Python SDK, each call once, and keeps a standing stream.

A server of the newer protocol has no sessions, and the standing stream is a subscription. With one of the older
protocol the SDK keeps a session, and the standing stream is its GET stream. A session that the server does not know
any more is counted, and a new one opened.
"""

import asyncio
import itertools
import logging
import re
import time
from typing import NamedTuple

import httpx2
import mcp
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost
from tally import Stop, Tally, arguments, finish

TIMEOUT = 20.0
# A reused connection that is reset before an answer was ended while it was idle: the server has not read the request. If it
# ends without a reset, that is seen by how soon after the write it was.
RACE = 0.02

# Of each server: the argument that `echo` gives back, the tool that takes 2 seconds and tells its progress, with its
# arguments, and the tool that tells the version.
TOOLS = {
    "workload": ("message", "slow", {"seconds": 2, "steps": 5}, "version"),
    "everything": ("message", "trigger-long-running-operation", {"duration": 2, "steps": 5}, "get-env"),
    "example": ("text", "slow", {"step_ms": 400, "steps": 5}, "version"),
}


def main():
    given = arguments(
        __doc__.splitlines()[0],
        path=("/mcp", "where the server speaks MCP"),
        mode=("auto", "auto, or legacy for the older protocol"),
        clients=(3, "clients"),
        tools=("workload", f"whose tools: {', '.join(TOOLS)}"),
    )
    given.echoed, given.slow, given.slow_arguments, given.version = TOOLS[given.tools]
    logging.disable(logging.CRITICAL)
    stop, tally = Stop(given.seconds), Tally()
    asyncio.run(work(given, stop, tally))
    finish(tally)


async def work(given, stop, tally):
    jobs = [asyncio.create_task(sessions(given, stop, tally, quick_calls)) for _ in range(given.clients)]
    jobs.append(asyncio.create_task(sessions(given, stop, tally, slow_calls)))
    jobs.append(asyncio.create_task(standing(given, stop, tally)))
    while not stop.is_set():
        await asyncio.sleep(0.1)
    _, late = await asyncio.wait(jobs, timeout=TIMEOUT + 10)
    for _ in late:
        tally.failed("timeout", "a client did not come to its end")


class Failure(NamedTuple):
    """As `Tally.failed` takes it."""

    how: str
    what: str = ""
    carried: int = 0
    age: float | None = None


class Watched(httpx2.AsyncHTTPTransport):
    """The transport of the SDK, which notes how each exchange over HTTP ended; it changes nothing."""

    def __init__(self, tally):
        super().__init__()
        self.tally = tally
        # How the last exchange failed; the SDK tells of it in words only.
        self.failure = None
        # By the port of this side: when it was opened, and how many answers it has brought.
        self.connections = {}
        # The newer protocol has no sessions, and a server of the older one may go without.
        self.session = None

    async def handle_async_request(self, request):
        began, fresh, written = time.monotonic(), False, None

        async def trace(event, _):
            nonlocal fresh, written
            fresh |= event.startswith("connection.connect")
            if event.endswith("send_request_headers.started"):
                written = time.monotonic()

        request.extensions = {**request.extensions, "trace": trace}
        try:
            response = await super().handle_async_request(request)
        except httpx2.HTTPError as error:
            soon = time.monotonic() - (written or began) < RACE and not isinstance(error, httpx2.TimeoutException)
            raced = not fresh and (soon or isinstance(error, (httpx2.ReadError, httpx2.WriteError)))
            # Which of the kept connections it was is not told before there is an answer.
            on = (0, 0.0) if fresh else (1, None)
            self.failure = Failure("idle_raced" if raced else kind_of(error), f"{type(error).__name__}: {error}", *on)
            raise
        on = self.used(response, began)
        self.session = response.headers.get("mcp-session-id", self.session)
        if response.status_code >= 400:
            self.failure = Failure("error_status", f"status {response.status_code} to {request.method}", *on)
        response.stream = WatchedStream(response.stream, self, on)
        return response

    def used(self, response, began):
        """How many requests the connection of an answer had carried before, and how old it was."""
        port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
        opened, carried = self.connections.get(port, (began, 0))
        self.connections[port] = (opened, carried + 1)
        return carried, began - opened


class WatchedStream(httpx2.AsyncByteStream):
    """The body of an answer."""

    def __init__(self, inner, watched, on):
        self.inner, self.watched, self.on = inner, watched, on

    async def __aiter__(self):
        try:
            async for part in self.inner:
                yield part
        except httpx2.HTTPError as error:
            what = f"in the answer: {type(error).__name__}: {error}"
            self.watched.failure = Failure(kind_of(error), what, *self.on)
            raise

    async def aclose(self):
        await self.inner.aclose()


def kind_of(error):
    if isinstance(error, httpx2.ConnectError):
        return "refused"
    if isinstance(error, httpx2.TimeoutException):
        return "timeout"
    if isinstance(error, (httpx2.ReadError, httpx2.WriteError)):
        return "reset"
    return "cut"


def connect(given, watched):
    host, port = given.address
    http = httpx2.AsyncClient(transport=watched, timeout=httpx2.Timeout(TIMEOUT), trust_env=False)
    transport = streamable_http_client(f"http://{host}:{port}{given.path}", http_client=http)
    return http, mcp.Client(transport, mode=given.mode, cache=None, read_timeout_seconds=TIMEOUT)


async def sessions(given, stop, tally, calls):
    """One client after the other, each for as long as its session lasts."""
    while not stop.is_set():
        watched = Watched(tally)
        http, client = connect(given, watched)
        try:
            async with http, client:
                tally.add("sessions" if watched.session else "clients_without_session")
                tally.add(f"protocol_{client.protocol_version}")
                for call, pause in calls(given, tally, client):
                    if stop.is_set() or not await counted(call, tally, watched):
                        break
                    await asyncio.sleep(pause)
        except Exception as error:
            # The SDK raises whatever ended the connection, in groups; what it was has been noted.
            if watched.session and is_lost_session(error, watched):
                # It was opened at one process, and the next message reached the other.
                tally.add("sessions")
                tally.add("sessions_lost")
            else:
                report(tally, watched, error)
            await asyncio.sleep(0.05)


async def counted(call, tally, watched):
    """Makes a call and counts how it ended; says whether the session is still there."""
    watched.failure = None
    began = time.monotonic()
    try:
        version = await call()
        tally.ok(time.monotonic() - began, version)
    except (mcp.MCPError, TimeoutError) as error:
        if is_lost_session(error, watched):
            tally.add("sessions_lost")
            return False
        report(tally, watched, error)
        await asyncio.sleep(0.05)
    return True


def quick_calls(given, tally, client):
    """Calls without an end, each with the pause after it; in the long ones connections are idle."""

    async def version():
        text = check(tally, await client.call_tool(given.version, {}), None)
        found = re.search(r'WORKLOAD_VERSION": "(\w+)"', text) or re.fullmatch(r"(\w+)", text)
        return found and found[1]

    async def names():
        tools = {tool.name for tool in (await client.list_tools()).tools}
        if "echo" not in tools:
            tally.failed("wrong", f"the tools are {sorted(tools)}")

    for number in itertools.count():
        message = f"message {number}"

        async def echo(message=message):
            check(tally, await client.call_tool("echo", {given.echoed: message}), message)

        yield (
            (version if number % 4 == 1 else names if number % 20 == 10 else echo),
            (0.3 if number % 15 == 14 else 0.005),
        )


def slow_calls(given, tally, client):
    """Calls that take a while, one after the other, and tell their progress."""

    async def slow():
        seen = []

        async def progress(done, total, message):
            seen.append(done)

        result = await client.call_tool(given.slow, given.slow_arguments, progress_callback=progress)
        check(tally, result, None)
        # A notification may come late, but not none of them.
        if not seen:
            tally.failed("wrong", "a slow call told no progress")
        tally.add("slow_calls")

    while True:
        yield slow, 0.05


def check(tally, result, wanted):
    text = result.content[0].text if result.content else None
    if result.is_error or text is None or (wanted is not None and wanted not in text):
        tally.failed("wrong", f"{text!r} instead of {wanted!r}")
    return text or ""


def is_lost_session(error, watched):
    """A server that does not know the session says so with 404 (or 400, as some do)."""
    noted = watched.failure.what if watched.failure else ""
    return "Session" in str(error) or "session" in str(error) or noted.startswith(("status 404", "status 400"))


def report(tally, watched, error):
    # Without a note no exchange failed: an answer that came in part, or never, on a connection of before.
    noted = watched.failure or Failure("timeout" if isinstance(error, TimeoutError) else "cut", carried=1)
    watched.failure = None
    what = f"{noted.what} {type(error).__name__}: {error}".strip()[:300]
    tally.failed(noted.how, what, noted.carried, noted.age)


async def standing(given, stop, tally):
    """A subscription that stays open. That it ends with its server is no failure, if the next one can be opened."""
    while not stop.is_set():
        watched = Watched(tally)
        http, client = connect(given, watched)
        try:
            async with http, client:
                if client.protocol_version < "2026":
                    # The clients above have a standing stream each, with their session.
                    return
                async with client.listen(tools_list_changed=True) as subscription:
                    tally.add("streams")
                    await until_end(subscription, stop)
                    tally.add("streams_ended_in_order", 0 if stop.is_set() else 1)
        except Exception as error:
            if has(error, SubscriptionLost):
                tally.add("streams_ended")
            elif watched.failure and watched.failure.what.startswith("status 404"):
                # A server need not have subscriptions to offer.
                return
            else:
                report(tally, watched, error)
            await asyncio.sleep(0.05)


def has(error, wanted):
    """Whether it is such an exception, or a group with one."""
    return isinstance(error, wanted) or any(has(inner, wanted) for inner in getattr(error, "exceptions", ()))


async def until_end(subscription, stop):
    async def events():
        async for _ in subscription:
            pass

    task = asyncio.create_task(events())
    while not stop.is_set() and not task.done():
        await asyncio.wait([task], timeout=0.1)
    if task.done():
        task.result()
    task.cancel()


if __name__ == "__main__":
    main()
