"""What every load counts, how it tells one failure from another, and the one line of JSON that it ends with."""

import argparse
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

# Each is a failure that a client notices.
FAILURES = ("refused", "reset", "cut", "timeout", "error_status", "wrong", "lost")
# Those of a connection; the others are of an answer.
OF_CONNECTION = ("refused", "reset", "cut", "timeout")
# These are no failures: the server ended a connection on which no request waited for an answer.
ENDED_IDLE = ("idle_closed", "idle_raced")
# Maximum number of failures to list.
TOLD = 100

# States of a connection in TCP_INFO.
TCP_CLOSE = 7


class Ended(Exception):
    """The connection ended: before the answer began, or in it."""


def kind_of_connection(error):
    """Which failure of a connection over a raw socket this is; nothing if it is one of the answer."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "reset"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "cut" if isinstance(error, Ended) else None


class Tally:
    """Counts, for any number of threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._counts = {}
        self._took_ms = []
        self._versions = {}
        self._last_ok = None
        self._longest_gap = 0.0
        self._first = None
        self._told = []

    def ok(self, seconds, version=None):
        """An answer that was right, and how long it took."""
        now = time.monotonic()
        with self._lock:
            self._bump("requests")
            self._took_ms.append(seconds * 1000)
            if version is not None:
                self._versions[version] = self._versions.get(version, 0) + 1
            if self._last_ok is not None:
                self._longest_gap = max(self._longest_gap, now - self._last_ok)
            self._last_ok = now

    def failed(self, how, what, carried=0, age=None):
        """A failure, one of `FAILURES` or `ENDED_IDLE`, and what can be said of it.

        `carried` is how many requests its connection had carried before: 0 for a new one. `age` is how old it was when
        this request began, in seconds, if that is known.
        """
        kind = "kept" if carried else "new"
        with self._lock:
            if how in FAILURES:
                self._bump("requests")
                if self._first is None:
                    self._first = f"{how}: {what}"
            if how in OF_CONNECTION:
                self._bump(f"{kind}_{how}")
            if how != "idle_closed" and len(self._told) < TOLD:
                age_ms = None if age is None else round(age * 1000, 1)
                told = {"how": how, "at": time.time(), "kind": kind, "carried": carried, "age_ms": age_ms, "what": what}
                self._told.append(told)
            self._bump(how)

    def add(self, name, number=1):
        """Anything else that is worth a count."""
        with self._lock:
            self._counts[name] = self._counts.get(name, 0) + number

    def _bump(self, name):
        self._counts[name] = self._counts.get(name, 0) + 1

    def line(self):
        """The last line of a load."""
        with self._lock:
            took = sorted(self._took_ms)
            said = {name: self._counts.get(name, 0) for name in ("requests", *FAILURES, *ENDED_IDLE)}
            said["sessions_lost"] = self._counts.get("sessions_lost", 0)
            said.update((name, count) for name, count in sorted(self._counts.items()) if name not in said)
            said["p50_ms"] = _rank(took, 0.50)
            said["p99_ms"] = _rank(took, 0.99)
            said["max_ms"] = _rank(took, 1.0)
            said["gap_ms"] = round(self._longest_gap * 1000, 2)
            said["versions"] = self._versions
            said["first"] = self._first
            said["failures"] = self._told
            return json.dumps(said)

    def is_good(self):
        """Whether no client noticed anything."""
        with self._lock:
            return self._counts.get("requests", 0) > 0 and not any(self._counts.get(name) for name in FAILURES)


def _rank(sorted_values, share):
    """The smallest value that at least this share of all values does not exceed."""
    if not sorted_values:
        return None
    at = max(0, -(-len(sorted_values) * share // 1) - 1)
    return round(sorted_values[min(len(sorted_values) - 1, int(at))], 2)


class Stop:
    """Set by SIGTERM, SIGINT, or after the given number of seconds."""

    def __init__(self, seconds):
        self._event = threading.Event()
        self._until = time.monotonic() + seconds
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: self._event.set())

    def is_set(self):
        return self._event.is_set() or time.monotonic() >= self._until

    def wait(self, seconds):
        """Pauses, but not beyond the end."""
        self._event.wait(max(0.0, min(seconds, self._until - time.monotonic())))


def arguments(about, **more):
    """The options that all loads have, and those of this one: name=(default, help)."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("address", type=loopback, help="where the server listens, HOST:PORT on the loopback")
    parser.add_argument("--seconds", type=float, default=20.0, help="ends by itself after so long (at most 600)")
    for name, (default, what) in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=what)
    given = parser.parse_args()
    given.seconds = min(given.seconds, 600.0)
    # Neither a proxy nor a certificate bundle of the environment has a place here.
    for name in list(os.environ):
        if name == "AWS_CA_BUNDLE" or name.lower().endswith("_proxy"):
            del os.environ[name]
    return given


def loopback(text):
    """HOST:PORT, if the host is this machine."""
    host, _, port = text.rpartition(":")
    if host not in ("127.0.0.1", "[::1]") or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not an address of the loopback")
    return host.strip("[]"), int(port)


def run_threads(jobs, stop, tally, give_up=15.0):
    """Runs each job in a thread until the end, prints the line, and ends the process with what it says."""

    def guarded(job):
        try:
            job()
        except Exception as error:  # a load with a bug must not pass for a good one
            tally.failed("wrong", f"the load itself failed: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    while not stop.is_set() and any(thread.is_alive() for thread in threads):
        stop.wait(0.2)
    until = time.monotonic() + give_up
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            tally.failed("timeout", f"a request was still without an answer {give_up:.0f} s after the end")
    finish(tally)


def finish(tally):
    """Prints the line and leaves, whatever threads still wait for."""
    print(tally.line(), flush=True)
    sys.stdout.flush()
    os._exit(0 if tally.is_good() else 1)


def unread_at_end(sock):
    """Of a connection that ended without an answer: whether the server ended it without having read what was sent.

    If it had read the request, there is an end of the stream and nothing more: the connection is half closed. If it had
    not, its kernel answers with a reset, and the connection is closed altogether. On the loopback that is known at once.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return True
    return struct.unpack("B", info)[0] == TCP_CLOSE
