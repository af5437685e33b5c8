#!/usr/bin/env python3
"""A small HTTP server on the blocking form of the Python library. It counts requests in its data directory."""

import os
import select
import signal
import socket
import sys
import threading
import time

from handoff_service import Handlers, start

VERSION, FAULT = "0", ""


def fault(point):
    """Executes the fault of this release at a point."""
    if FAULT == f"kill-{point}":
        os.kill(os.getpid(), signal.SIGKILL)
    if FAULT == f"fail-{point}":
        raise RuntimeError(f"this release fails in {point}")
    if FAULT == f"hang-{point}":
        threading.Event().wait()
    if FAULT == f"slow-{point}":
        time.sleep(3)


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


class Server(Handlers):
    def __init__(self, service, data):
        self.service = service
        self.listener = service.listeners["main"]
        self.data = data
        self.state = None
        self.running = 0
        self.changed = threading.Condition()

    def open(self):
        path = os.path.join(self.data, "count")
        self.count = open(path, "a+b", buffering=0)
        self.wake, self.waker = os.pipe()
        self.listener.setblocking(False)
        self.accepting = threading.Thread(target=self.accept, daemon=True)
        self.accepting.start()

    def accept(self):
        while True:
            readable, _, _ = select.select([self.listener, self.wake], [], [])
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                if self.wake in readable:
                    return
                continue
            with self.changed:
                self.running += 1
            threading.Thread(target=self.serve, args=[connection], daemon=True).start()
            if self.wake in readable and self.service.mode == 0:
                return

    def serve(self, connection):
        try:
            connection.setblocking(True)
            request = b""
            while b"\r\n\r\n" not in request:
                more = connection.recv(4096)
                if not more:
                    return
                request += more
            path = request.split(b" ")[1].decode()
            if path.startswith("/slow/"):
                time.sleep(int(path[6:]) / 1000)
            self.count.write(b"x")
            word = in_words(self.state) if path == "/state" else VERSION
            body = f"{word} {os.getpid()}".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)
        finally:
            connection.close()
            with self.changed:
                self.running -= 1
                self.changed.notify_all()

    def drain(self, grace, cancelled):
        fault("drain")
        self.hand_over("drain")
        until = time.monotonic() + grace
        while self.running > 2 and time.monotonic() < until and not cancelled.is_set():
            with self.changed:
                self.changed.wait(0.05)

    def seal(self, cut):
        print(f"{VERSION} seals", flush=True)
        fault("seal")
        os.write(self.waker, b"x")
        self.accepting.join()
        with self.changed:
            self.changed.wait_for(lambda: self.running == 0)
        self.count.close()
        os.close(self.wake)
        os.close(self.waker)
        self.hand_over("seal")

    def hand_over(self, point):
        state = handed(point)
        if state is not None:
            self.service.hand_over(*state)

    def resume(self):
        fault("resume")
        if not self.accepting.is_alive():
            self.open()
        print(f"{VERSION} resumes", flush=True)


def main():
    with start(version=f"{VERSION}-said") as service:
        fault("warming")
        state = service.begin(data=sys.argv[1])
        fault("begin")
        server = Server(service, sys.argv[1])
        if state is not None:
            fault("take")
            server.state = state
        server.open()
        fault("ready")
        service.ready(server)
    print(f"{VERSION} serves", flush=True)
    return service.wait()


if __name__ == "__main__":
    sys.exit(main())
