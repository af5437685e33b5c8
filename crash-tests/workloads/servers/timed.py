#!/usr/bin/env python3
"""A small HTTP server that keeps connections and answers each request after a fixed time.

    timed.py HOST:PORT MILLISECONDS at-once|in-order

One thread serves all connections, as in nginx, redis or Node. `at-once`: SIGTERM ends it whatever it is doing, as it ends a
program that has no handler. `in-order`: at SIGTERM it closes what is idle, answers what it has read with
`Connection: close`, and ends. WORKLOAD_VERSION is the version that it tells.
"""

import asyncio
import os
import signal
import socket
import sys

BODY = b"hello from timed\n"
END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client. Requests have no body."""

    def __init__(self, server):
        self._server, self._read, self._waiting = server, b"", 0

    def connection_made(self, transport):
        self._transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.connections.add(self)

    def connection_lost(self, _):
        self._server.connections.discard(self)
        self._server.end_if_done()

    def data_received(self, data):
        self._read += data
        while END in self._read:
            head, self._read = self._read.split(END, 1)
            self._waiting += 1
            ends = b"connection: close" in head.lower()
            if self._server.seconds > 0:
                asyncio.get_running_loop().call_later(self._server.seconds, self._answer, ends)
            else:
                self._answer(ends)

    def end_if_idle(self):
        if not self._waiting:
            self._transport.close()

    def _answer(self, ends):
        self._waiting -= 1
        if self._transport.is_closing():
            return
        ends = ends or self._server.leaves
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\nX-Version: {self._server.version}\r\n"
        head += "Connection: close\r\n\r\n" if ends else "\r\n"
        self._transport.write(head.encode() + BODY)
        if ends:
            self._transport.close()


class Server:
    def __init__(self, seconds):
        self.seconds, self.connections, self.leaves = seconds, set(), False
        self.version = os.environ.get("WORKLOAD_VERSION", "none")
        self._done = asyncio.Event()

    async def run(self, host, port, in_order):
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        if in_order:
            loop.add_signal_handler(signal.SIGTERM, self._leave, listener)
        await self._done.wait()

    def end_if_done(self):
        if self.leaves and not self.connections:
            self._done.set()

    def _leave(self, listener):
        self.leaves = True
        listener.close()
        for connection in list(self.connections):
            connection.end_if_idle()
        self.end_if_done()


def main():
    address, milliseconds, how = sys.argv[1:]
    host, _, port = address.rpartition(":")
    asyncio.run(Server(float(milliseconds) / 1000).run(host, int(port), how == "in-order"))


if __name__ == "__main__":
    main()
