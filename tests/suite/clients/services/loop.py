#!/usr/bin/env python3
"""A small HTTP server on the asyncio form of the Python library."""

import asyncio
import os
import signal
import sys
import time

from handoff_service import aio

VERSION, FAULT = "0", ""


async def fault(point):
    """Executes the fault of this release at a point."""
    if FAULT == f"kill-{point}":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == f"fail-{point}":
        raise RuntimeError(f"this release fails in {point}")
    if FAULT == f"hang-{point}":
        await asyncio.Event().wait()
    if FAULT == f"slow-{point}":
        await asyncio.sleep(3)


def handed(point):
    """The state that this release hands over at a point: its format and content."""
    length = int(FAULT[6:]) if FAULT.startswith("hands-") else None
    if length is None:
        return None
    return (1, b"early") if point == "drain" else (2, content(length))


def content(length):
    return (b"handed over " * (length // 12 + 1))[:length]


def in_words(state):
    """A description of the received state, for clients."""
    if state is None:
        return "none"
    soundness = "sound" if state.content in (b"early", content(len(state.content))) else "damaged"
    return f"{state.format}:{len(state.content)}:{soundness}"


class Server(aio.Handlers):
    def __init__(self, service):
        self.service = service
        self.listener = service.listeners["main"]
        self.running = set()
        self.state = None

    async def open(self):
        self.listener.setblocking(False)
        self.accepting = asyncio.create_task(self.accept())

    async def accept(self):
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(self.listener)
            task = asyncio.create_task(self.serve(connection))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def serve(self, connection):
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            path = request.split(b" ")[1].decode()
            if path.startswith("/slow/"):
                await asyncio.sleep(int(path[6:]) / 1000)
            if path.startswith("/block/"):
                time.sleep(int(path[7:]) / 1000)
            word = in_words(self.state) if path == "/state" else VERSION
            body = f"{word} {os.getpid()}".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            await writer.wait_closed()

    async def drain(self, grace):
        await fault("drain")
        self.hand_over("drain")
        await asyncio.wait_for(self.idle(), grace)

    async def idle(self):
        while self.running:
            await asyncio.wait(self.running)

    async def seal(self, cut):
        print(f"{VERSION} seals", flush=True)
        await fault("seal")
        self.accepting.cancel()
        await asyncio.gather(self.accepting, return_exceptions=True)
        await self.idle()
        self.hand_over("seal")

    def hand_over(self, point):
        state = handed(point)
        if state is not None:
            self.service.hand_over(*state)

    async def take_over(self, state):
        await fault("take")
        self.state = state

    async def resume(self):
        await fault("resume")
        if self.accepting.done():
            await self.open()
        print(f"{VERSION} resumes", flush=True)


async def main():
    async with await aio.start(version=f"{VERSION}-said") as service:
        await fault("warming")
        await service.begin(data=sys.argv[1])
        await fault("begin")
        server = Server(service)
        await server.open()
        await fault("ready")
        await service.ready(server)
    print(f"{VERSION} serves", flush=True)
    return await service.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
