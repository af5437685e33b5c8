"""Requests to a plain HTTP server over raw sockets, each connection classified for itself.

New connections send `Connection: close`. Kept-alive ones are left idle now and then, as those of browsers and pools
are, and look for an end of the connection before they write, as every HTTP client does. Back-to-back clients keep their
connection and never pause; paced ones ask five times a second.
"""

import itertools
import random
import select
import socket
import time

from tally import Ended, Stop, Tally, arguments, kind_of_connection, run_threads, unread_at_end

TIMEOUT = 10.0


def main():
    given = arguments(
        __doc__.splitlines()[0],
        path=("/", "what to get"),
        new=(3, "clients with a new connection for each request"),
        kept=(3, "clients that keep their connection"),
        back_to_back=(0, "clients that keep it, and ask again as soon as they are answered"),
        paced=(0, "clients that keep it, and ask every 200 ms"),
        body=("", "what the answer must begin with"),
    )
    stop, tally = Stop(given.seconds), Tally()
    jobs = [lambda: each_new(given, stop, tally) for _ in range(given.new)]
    for count, pause in ((given.kept, now_and_then), (given.back_to_back, never), (given.paced, evenly)):
        jobs += [lambda seed=seed, pause=pause: kept_alive(given, stop, tally, pause(seed)) for seed in range(count)]
    run_threads(jobs, stop, tally)


def each_new(given, stop, tally):
    while not stop.is_set():
        began = time.monotonic()
        sock = connect(given.address, tally)
        if sock is None:
            stop.wait(0.05)
            continue
        with sock:
            try:
                version = exchange(sock, given, keep=False)
                tally.ok(time.monotonic() - began, version)
            except (Ended, ValueError, OSError) as error:
                tally.failed(kind_of(error), f"on a new connection: {error}")
        stop.wait(0.002)


# How long a client pauses after an answer: generators of seconds, one for each client.


def now_and_then(seed):
    chance = random.Random(seed)
    while True:
        yield 0.3 if chance.random() < 0.03 else 0.005


def never(_):
    while True:
        yield 0.0


def evenly(seed):
    """Not all at the same moment."""
    due = time.monotonic() + 0.025 * (seed % 8)
    while True:
        due = max(due + 0.2, time.monotonic())
        yield due - time.monotonic()


def kept_alive(given, stop, tally, pauses):
    sock, used, opened = None, 0, 0.0
    while not stop.is_set():
        if sock is not None and is_ended(sock):
            # Seen before anything was written: no client makes an error of it.
            tally.failed("idle_closed", "")
            sock.close()
            sock = None
        if sock is None:
            sock, used, opened = connect(given.address, tally), 0, time.monotonic()
            if sock is None:
                stop.wait(0.05)
                continue
        began = time.monotonic()
        try:
            version = exchange(sock, given, keep=True)
            tally.ok(time.monotonic() - began, version)
            used += 1
        except (Ended, ValueError, OSError) as error:
            raced = used > 0 and ended_without_answer(error) and unread_at_end(sock)
            how = "idle_raced" if raced else kind_of(error)
            tally.failed(how, f"after {used} requests: {error}", used, began - opened)
            sock.close()
            sock = None
        pause = next(pauses)
        if pause > 0:
            stop.wait(pause)
    if sock is not None:
        sock.close()


def connect(address, tally):
    try:
        return socket.create_connection(address, TIMEOUT)
    except OSError as error:
        tally.failed(kind_of(error), f"connect: {error}")
        return None


def is_ended(sock):
    """Whether the server has ended an idle connection."""
    readable, _, _ = select.select([sock], [], [], 0)
    return bool(readable)


numbers = itertools.count()


def exchange(sock, given, keep):
    """One request and its whole answer; gives the version that the answer names."""
    way = "keep-alive" if keep else "close"
    sock.sendall(f"GET {given.path}?{next(numbers)} HTTP/1.1\r\nHost: localhost\r\nConnection: {way}\r\n\r\n".encode())
    got = b""
    while b"\r\n\r\n" not in got:
        got += receive(sock, "before the answer" if not got else "in the head of the answer")
    head, _, body = got.partition(b"\r\n\r\n")
    status, headers = parse(head)
    while len(body) < int(headers.get("content-length", 0)):
        body += receive(sock, "in the body of the answer")
    if status != 200:
        raise ValueError(f"status {status}")
    if not body.startswith(given.body.encode()) or len(body) != int(headers["content-length"]):
        raise ValueError(f"wrong bytes: {body[:40]!r}")
    return headers.get("x-version")


def receive(sock, where):
    got = sock.recv(65536)
    if not got:
        raise Ended(f"ended {where}")
    return got


def parse(head):
    first, *rest = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in rest)
    return int(first.split()[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def ended_without_answer(error):
    return isinstance(error, (ConnectionResetError, BrokenPipeError)) or str(error) == "ended before the answer"


def kind_of(error):
    kind = kind_of_connection(error)
    return kind or ("error_status" if str(error).startswith("status") else "wrong")


if __name__ == "__main__":
    main()
