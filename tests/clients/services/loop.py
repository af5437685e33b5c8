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
    """What this release does wrong at a point."""
    if FAULT == f"kill-{point}":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == f"fail-{point}":
        raise RuntimeError(f"this release fails in {point}")
    if FAULT == f"hang-{point}":
        await asyncio.Event().wait()
    if FAULT == f"slow-{point}":
        await asyncio.sleep(1.5)


class Server(aio.Handlers):
    def __init__(self, listener):
        self.listener = listener
        self.running = set()

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
            body = f"{VERSION} {os.getpid()}".encode()
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
        await asyncio.wait_for(self.idle(), grace)

    async def idle(self):
        while self.running:
            await asyncio.wait(self.running)

    async def seal(self, cut):
        await fault("seal")
        self.accepting.cancel()
        await asyncio.gather(self.accepting, return_exceptions=True)
        await self.idle()

    async def resume(self):
        await fault("resume")
        if self.accepting.done():
            await self.open()
        print(f"{VERSION} resumes", flush=True)


async def main():
    async with await aio.start() as service:
        await fault("warming")
        await service.begin(data=sys.argv[1])
        await fault("begin")
        server = Server(service.listeners["main"])
        await server.open()
        await fault("ready")
        await service.ready(server)
    print(f"{VERSION} serves", flush=True)
    return await service.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
