"""Clients that come all the time: how long new connections went without an answer."""

import socket
import threading
import time
from itertools import pairwise

EVERY = 0.005
PATIENCE = 30.0


class Newcomers:
    """Opens a connection every few milliseconds, asks once, and notes when an answer came, until it is closed."""

    def __init__(self, place, question):
        self._address = ("127.0.0.1", place.port)
        self._request = question
        self._answers, self.failures = [], []
        self._lock, self._closed = threading.Lock(), threading.Event()
        # Two, so that one that waits does not hide that others are answered.
        self._threads = [threading.Thread(target=self._come, daemon=True) for _ in range(2)]
        for thread in self._threads:
            thread.start()

    def close(self):
        self._closed.set()
        for thread in self._threads:
            thread.join(PATIENCE + 5)

    @property
    def count(self):
        return len(self._answers) + len(self.failures)

    def said(self):
        """Like the last line of a load. All of their connections are new."""
        counts = {"requests": self.count, "failures": self.failures}
        for failure in self.failures:
            for name in (failure["how"], f"new_{failure['how']}"):
                counts[name] = counts.get(name, 0) + 1
        first = next((f"{failure['how']}: a newcomer" for failure in self.failures), None)
        return {**counts, "first": first}

    def longest_gap(self, began, ended):
        """The longest time between two answers, in seconds, of those that came between two moments."""
        with self._lock:
            answers = sorted(self._answers)
        moments = [began] + [moment for moment in answers if began < moment < ended] + [ended]
        return max(after - before for before, after in pairwise(moments))

    def _come(self):
        while not self._closed.is_set():
            how = self._ask()
            with self._lock:
                if how is None:
                    self._answers.append(time.monotonic())
                else:
                    self.failures.append({"how": how, "at": time.time(), "kind": "new", "carried": 0, "what": "newcomer"})
            self._closed.wait(EVERY)

    def _ask(self):
        """How it failed, or None."""
        try:
            with socket.create_connection(self._address, PATIENCE) as sock:
                sock.sendall(self._request)
                return None if sock.recv(1) else "cut"
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "timeout"
        except OSError:
            return "reset"
