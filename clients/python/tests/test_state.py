"""Handed-over state, in the message and in a file, and over a real channel."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import threading
import unittest
import uuid
from typing import List, Optional
from unittest import mock

from handoff_service import Handlers, State, StateError
from handoff_service import message as m
from handoff_service.channel import Channel
from handoff_service.driver import Driver
from handoff_service.frame import decode, encode
from handoff_service.machine import Event
from handoff_service.state import SEALS, pack, sealed_file, unpack

INLINE_MAX = 32 * 1024
FIVE_MIB = os.urandom(5 * 1024 * 1024)
LONG = bytes(INLINE_MAX + 1)
ID = uuid.UUID(int=7)
#: Time limit for an answer, in seconds.
LIMIT = 10.0


def states_open() -> int:
    """The number of open files of this process that hold a state."""
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += "handoff-state" in os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass  # The descriptor of the listing itself.
    return found


class Packing(unittest.TestCase):
    def test_what_is_packed_is_unpacked(self) -> None:
        for length in (0, 1, INLINE_MAX, INLINE_MAX + 1, len(FIVE_MIB)):
            state = State(3, FIVE_MIB[:length])
            message, file = pack(state, m.TakeOver)
            self.assertEqual((file is not None, message.fd_count), (length > INLINE_MAX, int(length > INLINE_MAX)))
            fds = [] if file is None else [file]
            if file is not None:
                os.lseek(file, 0, os.SEEK_END)
            self.assertEqual(unpack(message, fds), state)
            for fd in fds:
                with self.assertRaises(OSError):
                    os.pwrite(fd, b"x", 0)
                os.close(fd)

    def test_what_is_not_as_announced_is_refused(self) -> None:
        message, file = pack(State(3, LONG), m.TakeOver)
        assert file is not None
        os.close(file)
        seals = (fcntl.F_SEAL_SEAL, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_WRITE)
        cases = [(sealed_file(LONG, SEALS & ~missing), "not sealed") for missing in seals]
        cases += [(sealed_file(LONG + b"x"), "has 32770 bytes"), (sealed_file(b"x" * len(LONG)), "not the one")]
        with tempfile.TemporaryFile() as plain:
            cases.append((os.dup(plain.fileno()), "not sealed"))
        for fd, why in cases:
            with self.assertRaisesRegex(StateError, why):
                unpack(message, [fd])
            os.close(fd)
        with self.assertRaisesRegex(StateError, "not the one"):
            unpack(m.TakeOver(3, 1, 0, b"x"), [])

    def test_what_is_too_long_is_not_made(self) -> None:
        with self.assertRaisesRegex(StateError, "too long"):
            State(1, bytes(64 * 1024 * 1024 + 1))
        with self.assertRaisesRegex(StateError, "32 bits"):
            State(-1, b"")
        self.assertNotIn("secret", str(State(1, b"secret")))


class Played(unittest.TestCase):
    """The driver, with a simulated supervisor."""

    def start(self, mode: m.Mode, version: int = 2) -> Driver:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(LIMIT)
        self.supervisor = ours
        self.version = version
        welcome = m.Welcome(version, "s", 1, mode, (), 60_000)
        driver = Driver(Channel(theirs, version), None, ID, welcome, [])
        # The end of the driver must not end the test.
        driver.await_begins()
        driver.start()
        self.addCleanup(ours.close)
        return driver

    def end(self, driver: Driver) -> None:
        self.tell(m.Abort())
        self.assertEqual(driver.finished.result(LIMIT), 0)

    def tell(self, message: m.Message, file: Optional[int] = None) -> None:
        packet = encode(self.version, ID, message)
        socket.send_fds(self.supervisor, [packet], [] if file is None else [file])
        if file is not None:
            os.close(file)

    def hear(self, kind: "type[m.Message]") -> m.Message:
        while True:
            packet, self.fds, _flags, _from = socket.recv_fds(self.supervisor, 65_536, 8)
            self.assertTrue(packet, "the channel is closed")
            message = decode(packet, len(self.fds), self.version, m.FROM_SERVICE)[1]
            if isinstance(message, kind):
                return message
            self.assertIsInstance(message, m.Progress)

    def parked(self, driver: Driver) -> None:
        self.tell(m.Prepare(60_000, 60_000))
        driver.post(Event.STARTED)
        self.hear(m.Prepared)

    def serving(self, driver: Driver, handlers: Handlers) -> None:
        self.parked(driver)
        self.tell(m.Begin())
        driver.wait(driver.begun)
        driver.handlers = handlers
        driver.post(Event.OPENED)
        self.hear(m.Ready)
        self.tell(m.Commit())

    def test_the_last_one_is_there_when_the_process_begins(self) -> None:
        driver = self.start(m.Mode.EXCLUSIVE)
        self.parked(driver)
        for state in (State(1, b"first"), State(2, FIVE_MIB)):
            self.tell(*pack(state, m.TakeOver))
        self.tell(m.Begin())
        self.assertEqual(driver.wait(driver.begun), State(2, FIVE_MIB))
        self.end(driver)
        self.assertEqual(states_open(), 0)

    def test_a_process_that_cannot_read_it_is_not_healthy(self) -> None:
        driver = self.start(m.Mode.EXCLUSIVE)
        self.parked(driver)
        message, file = pack(State(1, LONG), m.TakeOver)
        assert file is not None
        os.close(file)
        self.tell(message, sealed_file(LONG, 0))
        ready = self.hear(m.Ready)
        assert isinstance(ready, m.Ready)
        self.assertFalse(ready.healthy)
        self.assertIn("not sealed", ready.reason)
        self.assertEqual(driver.finished.result(LIMIT), 1)

    def test_in_overlap_mode_it_comes_to_a_process_that_serves(self) -> None:
        taken: List[State] = []
        came = threading.Semaphore(0)

        class Server(Handlers):
            def take_over(self, state: State) -> None:
                taken.append(state)
                came.release()
                raise RuntimeError("this must not matter")

        driver = self.start(m.Mode.OVERLAP)
        with mock.patch("traceback.print_exc") as told:
            self.serving(driver, Server())
            for state in (State(1, b""), State(2, FIVE_MIB)):
                self.tell(*pack(state, m.TakeOver))
                self.assertTrue(came.acquire(timeout=LIMIT))
            self.tell(m.Prepare(60_000, 60_000))
            self.hear(m.Drained)
        self.end(driver)
        self.assertEqual(states_open(), 0)
        self.assertEqual(taken, [State(1, b""), State(2, FIVE_MIB)])
        self.assertEqual(told.call_count, 2)

    def handing(self, version: int) -> Driver:
        driver = self.start(m.Mode.OVERLAP, version)

        class Server(Handlers):
            def drain(self, grace: float, cancelled: threading.Event) -> None:
                driver.hand_over(State(4, b"from the drain"))

            def seal(self, cut: bool) -> None:
                driver.hand_over(State(4, FIVE_MIB))

        self.serving(driver, Server())
        self.tell(m.Prepare(60_000, 60_000))
        return driver

    def test_an_incumbent_hands_over_from_its_drain_and_from_its_seal(self) -> None:
        driver = self.handing(2)
        for length in (14, len(FIVE_MIB)):
            message = self.hear(m.HandOver)
            assert isinstance(message, m.HandOver)
            self.assertEqual((message.format, message.length), (4, length))
            if length > INLINE_MAX:
                taken = m.TakeOver(message.format, message.length, message.crc32, message.inline)
                self.assertEqual(unpack(taken, self.fds), State(4, FIVE_MIB))
                os.close(self.fds[0])
                break
            self.hear(m.Drained)
            self.tell(m.Seal(60_000, False))
        self.hear(m.Sealed)
        # Too late: it has no recipient.
        driver.hand_over(State(4, LONG))
        self.tell(m.Resume())
        self.hear(m.Resumed)
        self.end(driver)
        self.assertEqual(states_open(), 0)

    def test_in_version_1_nothing_is_handed_over(self) -> None:
        driver = self.handing(1)
        self.hear(m.Drained)
        self.tell(m.Seal(60_000, False))
        self.hear(m.Sealed)
        self.end(driver)
        self.assertEqual(states_open(), 0)
