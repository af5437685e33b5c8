"""The driver with a supervisor that does not read, with code that ends unexpectedly, and with long times."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import unittest
import uuid
from typing import Callable, List, Tuple
from unittest import mock

from handoff_service import State, aio
from handoff_service import message as m
from handoff_service.aio import _OnLoop
from handoff_service.channel import UNSENT_MAX, Channel
from handoff_service.driver import Driver, Worker
from handoff_service.frame import decode
from handoff_service.machine import ArmLease, Event
from handoff_service.state import pack

ID = uuid.UUID(int=7)
#: Time limit for an expected event, in seconds.
LIMIT = 10.0
MONTH_MS = 30 * 24 * 60 * 60 * 1000


def pair() -> Tuple[Channel, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours, 2), theirs


class Unsent(unittest.TestCase):
    def setUp(self) -> None:
        self.ours, self.peer = pair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.peer.close)

    def fill(self) -> None:
        while not self.ours.has_unsent:
            self.ours.send(ID, m.Drained())

    def test_a_peer_that_would_miss_a_message_is_lost(self) -> None:
        self.fill()
        for _ in range(UNSENT_MAX - 1):
            self.ours.send(ID, m.Drained())
            self.ours.send(ID, m.Progress("a sign of life may be missed"))
        self.assertFalse(self.ours.is_lost)
        self.ours.send(ID, m.Drained())
        self.assertTrue(self.ours.is_lost)

    def test_of_what_is_handed_over_the_last_one_waits(self) -> None:
        self.fill()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(2 * UNSENT_MAX):
            message, file = pack(State(number, bytes(40_000)), m.HandOver)
            assert file is not None
            self.ours.send(ID, message, [file])
            os.close(file)
        self.ours.send(ID, m.Sealed())
        self.assertFalse(self.ours.is_lost)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before + 1)
        found: List[m.Message] = []
        while not found or not isinstance(found[-1], m.Sealed):
            packet, fds, _flags, _from = socket.recv_fds(self.peer, 65_536, 8)
            found.append(decode(packet, len(fds), 2, m.FROM_SERVICE)[1])
            for fd in fds:
                os.close(fd)
            self.ours.flush()
        states = [message.format for message in found if isinstance(message, m.HandOver)]
        self.assertEqual(states, [2 * UNSENT_MAX - 1])

    def test_a_driver_gives_it_up_and_says_so(self) -> None:
        welcome = m.Welcome(2, "s", 1, m.Mode.OVERLAP, [], 60_000)
        driver = Driver(self.ours, None, ID, welcome, [])
        self.addCleanup(lambda: [os.close(fd) for fd in (driver._wake_reader, driver._wake_writer)])
        self.fill()
        for _ in range(UNSENT_MAX):
            self.ours.send(ID, m.Drained())
        driver.await_begins()
        driver._call(lambda: None)
        with mock.patch("builtins.print") as told:
            driver._turn()
        self.assertIn("does not read", told.call_args[0][0])
        self.assertEqual(driver.finished.result(LIMIT), 0, "a process that has not begun ends with its supervisor")


class LongTimes(unittest.TestCase):
    def test_a_lease_of_a_month_can_be_waited_for(self) -> None:
        ours, theirs = pair()
        self.addCleanup(theirs.close)
        welcome = m.Welcome(2, "s", 1, m.Mode.OVERLAP, [], MONTH_MS)
        driver = Driver(ours, None, ID, welcome, [])
        self.addCleanup(ours.close)
        self.addCleanup(lambda: [os.close(fd) for fd in (driver._wake_reader, driver._wake_writer)])
        driver._do([ArmLease(MONTH_MS)])
        driver._call(lambda: None)
        driver._turn()
        patience = driver._patience()
        assert patience is not None
        self.assertLess(patience, 2**31 / 1000)


class Ended(unittest.TestCase):
    """Service code that tries to end its own thread or loop."""

    def answers(self, code: Callable[[], None]) -> List[Tuple[Event, str]]:
        told: List[Tuple[Event, str]] = []
        done = threading.Event()

        def post(event: Event, reason: str) -> None:
            told.append((event, reason))
            if event is Event.RESUME_DONE:
                done.set()

        worker = Worker(post)
        with mock.patch("traceback.print_exc"):
            worker.run(code, Event.SEAL_DONE, Event.SEAL_FAILED)
            worker.run(lambda: None, Event.RESUME_DONE, Event.RESUME_FAILED)
            self.assertTrue(done.wait(LIMIT), "the thread goes on")
        return told

    def test_an_exit_in_a_handler_is_a_failure_of_it(self) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        after = (Event.RESUME_DONE, "")
        self.assertEqual(self.answers(lambda: sys.exit(3)), [(Event.SEAL_FAILED, "SystemExit: 3"), after])
        self.assertEqual(self.answers(interrupted), [(Event.SEAL_FAILED, "KeyboardInterrupt: "), after])


class OnLoop(unittest.TestCase):
    def setUp(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.addCleanup(self.end)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def test_a_cancelled_drain_is_over_before_it_returns(self) -> None:
        steps: List[str] = []
        begun = threading.Event()

        class Server(aio.Handlers):
            async def drain(self, grace: float) -> None:
                begun.set()
                try:
                    await asyncio.sleep(grace)
                finally:
                    await asyncio.sleep(0.05)
                    steps.append("drained")

            async def seal(self, cut: bool) -> None:
                steps.append("sealed")

        handlers, cancelled = _OnLoop(Server(), self.loop), threading.Event()

        def both() -> None:
            handlers.drain(60.0, cancelled)
            handlers.seal(False)

        worker = threading.Thread(target=both)
        worker.start()
        self.assertTrue(begun.wait(LIMIT))
        cancelled.set()
        worker.join(LIMIT)
        self.assertEqual(steps, ["drained", "sealed"])

    def test_an_exit_in_a_coroutine_is_a_failure_and_the_loop_goes_on(self) -> None:
        class Server(aio.Handlers):
            async def seal(self, cut: bool) -> None:
                sys.exit(3)

        handlers = _OnLoop(Server(), self.loop)
        with self.assertRaisesRegex(Exception, "SystemExit: 3"):
            handlers.seal(False)
        handlers.resume()


if __name__ == "__main__":
    unittest.main()
