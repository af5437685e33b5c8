"""Writes and reads of a store over raw sockets, each connection classified for itself.

Half of the clients open a connection for each write, the others keep theirs. Every acknowledged write is read back at the end, unless
the store is a cache. A server that accepts before it is ready is counted for itself.
"""

import socket
import threading
import time

from dialects import DIALECTS, NotReady, Refused
from tally import Ended, Stop, Tally, arguments, kind_of_connection, run_threads, unread_at_end

TIMEOUT = 10.0
# Pause of a client after the server has answered that it is not ready yet.
AGAIN = 0.02


def main():
    given = arguments(
        __doc__.splitlines()[0],
        dialect=("redis", f"how the store is asked: {', '.join(DIALECTS)}"),
        cache=(0, "1 if the store may forget what it acknowledged"),
        clients=(3, "of each kind"),
        pause=(0.004, "seconds between two requests of a client"),
    )
    load = StoreLoad(given)
    jobs = [lambda name=f"new{number}": load.each_new(name) for number in range(given.clients)]
    jobs += [lambda name=f"kept{number}": load.kept(name) for number in range(given.clients)]
    run_threads([*jobs, load.read_back], load.stop, load.tally, give_up=60.0)


class StoreLoad:
    def __init__(self, given):
        self.given, self.stop, self.tally = given, Stop(given.seconds), Tally()
        self.acknowledged, self.lock = {}, threading.Lock()
        self.working = 2 * given.clients

    def each_new(self, name):
        for number in self._numbers():
            connection = self._connect()
            if connection is not None:
                self._put(connection, f"{name}-{number}", 0, time.monotonic())
                connection.sock.close()
        self._done()

    def kept(self, name):
        connection, used, opened = None, 0, 0.0
        for number in self._numbers():
            if connection is None:
                connection, used, opened = self._connect(), 0, time.monotonic()
            if connection is not None:
                if self._put(connection, f"{name}-{number}", used, opened):
                    used += 1
                else:
                    connection.sock.close()
                    connection = None
        self._done()

    def read_back(self):
        """When all others have ended: what was acknowledged must be there."""
        while self.working and not self.given.cache:
            time.sleep(0.02)
        if self.given.cache:
            return
        connection = self._connect()
        for key, value in self.acknowledged.items():
            if connection is None:
                return
            found = connection.get(key)
            if found != value:
                self.tally.failed("lost" if found is None else "wrong", f"{key} is {found!r}, not {value!r}")

    def _numbers(self):
        number = 0
        while not self.stop.is_set():
            yield number
            number += 1
            self.stop.wait(self.given.pause)

    def _done(self):
        with self.lock:
            self.working -= 1

    def _connect(self):
        """A connection that is ready; until then the server is asked again, as a client would."""
        until = time.monotonic() + TIMEOUT
        while True:
            began = time.monotonic()
            sock = None
            try:
                sock = socket.create_connection(self.given.address, TIMEOUT)
                return DIALECTS[self.given.dialect](sock)
            except NotReady:
                self.tally.add("not_ready")
                sock.close()
                if time.monotonic() > until:
                    self.tally.failed("timeout", f"was not ready for {TIMEOUT:.0f} s")
                    return None
                time.sleep(AGAIN)
            except (Ended, Refused, OSError) as error:
                self.tally.failed(kind_of(error), f"connect: {error}", 0, time.monotonic() - began)
                if sock is not None:
                    sock.close()
                return None

    def _put(self, connection, key, used, opened):
        """Whether the connection is good for more."""
        began, value = time.monotonic(), f"value-of-{key}"
        while True:
            try:
                connection.put(key, value)
                break
            except NotReady:
                self.tally.add("not_ready")
                time.sleep(AGAIN)
                if time.monotonic() - began > TIMEOUT:
                    self.tally.failed("timeout", f"was not ready for {TIMEOUT:.0f} s", used, began - opened)
                    return False
            except (Ended, Refused, OSError) as error:
                how = kind_of(error)
                if used and how in ("cut", "reset") and unread_at_end(connection.sock):
                    how = "idle_raced"
                self.tally.failed(how, f"{key} after {used} requests: {error}", used, began - opened)
                return False
        self.tally.ok(time.monotonic() - began)
        with self.lock:
            self.acknowledged[key] = value
        return True


def kind_of(error):
    return kind_of_connection(error) or "error_status"


if __name__ == "__main__":
    main()
