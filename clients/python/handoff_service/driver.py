"""The thread that drives the machine: it talks to the supervisor, sends signs of life, and runs the service's
code.

It is a separate thread, so a service that is busy, or blocks in its drain, still answers.
"""

from __future__ import annotations

import os
import queue
import selectors
import sys
import threading
import time
import traceback
import uuid
from collections import deque
from concurrent.futures import Future
from typing import Any, Callable, Deque, List, Optional

from . import message as m
from .adoption import Entrance
from .channel import Channel
from .errors import FrameError, LockError, StateError
from .frame import common_version
from .lock import DataLock
from .machine import (
    Action, AnswerAdopt, ArmLease, Do, Drain, Event, Exit, KeepState, Process, RunSeal, Send, TakeOver,
)  # fmt: skip
from .state import State, pack, unpack

#: Maximum length of a reason, which must fit into a frame.
REASON_MAX = 4_000
#: Maximum length of a version text in characters. The rest is dropped.
VERSION_MAX = 128
#: Maximum wait of a selector in seconds: some accept no more than 24 days.
PATIENCE_MAX = 3_600.0


class Handlers:
    """The callbacks of a service. Override what you need; each runs on a thread of the library.

    An exception, including ``SystemExit``, is reported to the supervisor as the reason of the failure: the
    library decides when the process ends.
    """

    def drain(self, grace: float, cancelled: threading.Event) -> None:
        """Keep accepting; ask clients to reconnect; wait for long requests, at most ``grace`` seconds. Return
        soon after ``cancelled`` is set.
        """

    def seal(self, cut: bool) -> None:
        """Stop accepting, without closing a listener; finish what was accepted (you may cut it if ``cut``);
        make everything durable. After that, write nothing until ``resume``.
        """

    def resume(self) -> None:
        """Open the data again and accept."""

    def take_over(self, state: State) -> None:
        """Process the state that the predecessor hands over: in overlap mode, while this process already
        serves and the predecessor drains and seals. Each state replaces the one before. (In exclusive mode
        ``begin`` returns it.) An exception is written to the log and has no other effect.
        """
        text = f"handoff: the predecessor handed over {state}, which this service does not support"
        print(text, file=sys.stderr, flush=True)


class Driver(threading.Thread):
    """One process of a service, as seen by the supervisor."""

    def __init__(
        self,
        channel: Channel,
        entrance: Optional[Entrance],
        handoff: uuid.UUID,
        welcome: m.Welcome,
        listeners: List[int],
    ) -> None:
        super().__init__(name="handoff", daemon=True)
        self._channel: Optional[Channel] = channel
        self._entrance = entrance
        self._welcome = welcome
        #: Duplicates: those from ``Welcome`` belong to the service.
        self._listeners = listeners
        self._machine = Process(handoff, welcome.mode is m.Mode.OVERLAP)
        self._lease_ms = welcome.lease_ms
        self._lease_at: Optional[float] = None
        self._sign_at: Optional[float] = None
        self._events: Deque[Callable[[], None]] = deque()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._worker = Worker(self.post)
        self.note = ""
        self._version = ""
        self.data: Optional[str] = None
        self._lock: Optional[DataLock] = None
        self.handlers: Handlers = Handlers()
        #: The descriptors of the current message.
        self._fds: List[int] = []
        self._state: Optional[State] = None
        #: Completes when the service must open its data, with the handed-over state; with ``SystemExit`` if
        #: it must end.
        self.begun: Future[Optional[State]] = Future()
        #: Completes with the exit code when the process must end.
        self.finished: Future[int] = Future()
        self._waiting = 0
        self._guard = threading.Lock()

    def post(self, event: Event, reason: str = "") -> None:
        """Reports an event, from any thread."""
        self._call(lambda: self._do(self._machine.happen(event, reason[:REASON_MAX])))

    def hand_over(self, state: State) -> None:
        """Hands state over, from any thread, before later events."""
        message, file = pack(state, m.HandOver)
        self._call(lambda: self._hand_over(message, file))

    def tell_version(self, version: str) -> None:
        """Sends the server's version text to this supervisor, and to each later one."""
        self._version = version[:VERSION_MAX]
        self._call(self._send_version)

    def _send_version(self) -> None:
        if self._version and self._channel is not None and self._channel.version >= m.Release.SINCE:
            self._channel.send(self._machine.handoff, m.Release(self._version))

    def _call(self, code: Callable[[], None]) -> None:
        self._events.append(code)
        try:
            os.write(self._wake_writer, b"x")
        except BlockingIOError:
            pass  # Already awake.

    def wait(self, future: Future[Any]) -> Any:
        """Waits for one of the two futures. While a caller waits, that caller ends the process."""
        self.await_begins()
        try:
            return future.result()
        finally:
            self.await_ends()

    def await_begins(self) -> None:
        with self._guard:
            self._waiting += 1

    def await_ends(self) -> None:
        with self._guard:
            self._waiting -= 1

    def run(self) -> None:
        """Runs until the process must end."""
        try:
            while self._machine.state != "Gone":
                self._turn()
        except BaseException:
            # Otherwise a process that no longer listens to the supervisor would be detected as frozen much
            # later.
            traceback.print_exc()
            self._end(70)

    def _turn(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_reader, selectors.EVENT_READ)
            if self._channel is not None:
                writes = selectors.EVENT_WRITE if self._channel.has_unsent else 0
                selector.register(self._channel, selectors.EVENT_READ | writes)
            if self._entrance is not None:
                for source in (*self._entrance.callers, *([self._entrance.socket] if self._entrance.is_open else ())):
                    selector.register(source, selectors.EVENT_READ)
            selector.select(self._patience())
        self._take_events()
        self._take_messages()
        self._take_adopter()
        now = time.monotonic()
        if self._lease_at is not None and now >= self._lease_at:
            self._lease_at = None
            self._do(self._machine.happen(Event.LEASE))
        self._give_sign(now)
        self._give_up_lost()

    def _patience(self) -> Optional[float]:
        looks = self._entrance is not None and (self._channel is None or not self._entrance.is_open)
        rest = 1.0 if looks else None
        ends = [at for at in (self._lease_at, self._sign_at) if at is not None]
        times = [max(0.0, at - time.monotonic()) for at in ends] + ([rest] if rest else [])
        return min(*times, PATIENCE_MAX) if times else None

    def _take_events(self) -> None:
        try:
            os.read(self._wake_reader, 4096)
        except BlockingIOError:
            pass
        while self._events:
            self._events.popleft()()

    def _take_messages(self) -> None:
        while self._channel is not None and self._machine.state != "Gone":
            self._channel.flush()
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except FrameError as error:
                print(f"handoff: {error}; the channel is closed", file=sys.stderr, flush=True)
                received = None
            except OSError:
                received = None
            if received is None:
                self._hang_up()
                self._do(self._machine.happen(Event.CLOSED))
                return
            handoff, message, self._fds = received
            self._do(self._machine.message(handoff, message))
            self._close_fds()

    def _take_adopter(self) -> None:
        if self._entrance is not None and self._channel is None:
            self._entrance.look()
        found = self._entrance.next() if self._entrance is not None else None
        if found is None:
            return
        channel, handoff, adopt = found
        version = common_version(adopt.minimum, adopt.current)
        if not version:
            return channel.close()
        if self._channel is not None:
            self._take_messages()
        if self._channel is not None:
            self._hang_up()
            self._do(self._machine.happen(Event.CLOSED))
        self._channel, channel.version = channel, version
        self._lease_ms = adopt.lease_ms
        self._do(self._machine.adopt(handoff))

    def _give_sign(self, now: float) -> None:
        if not self._machine.works or self._channel is None:
            self._sign_at = None
            return
        if self._sign_at is not None and now >= self._sign_at:
            self._channel.send(self._machine.handoff, m.Progress(self.note[:REASON_MAX]))
            self._sign_at = None
        if self._sign_at is None:
            self._sign_at = now + max(self._lease_ms / 3000, 0.001)

    def _give_up_lost(self) -> None:
        """Closes the channel of a supervisor that would miss a message: no message is better than a gap."""
        if self._channel is not None and self._channel.is_lost:
            text = "handoff: the supervisor does not read its messages; the channel is closed"
            print(text, file=sys.stderr, flush=True)
            self._hang_up()
            self._do(self._machine.happen(Event.CLOSED))

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _do(self, actions: List[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._say(action.message)
            elif isinstance(action, KeepState):
                self._keep(action.message)
            elif isinstance(action, TakeOver):
                self._take_over(action.message)
            elif isinstance(action, AnswerAdopt):
                self._answer(action.stage)
            elif isinstance(action, ArmLease):
                self._lease_at = time.monotonic() + action.ms / 1000
            elif isinstance(action, Drain):
                self._worker.drain(self.handlers, action.grace_ms)
            elif isinstance(action, RunSeal):
                self._run_seal(action.cut)
            elif isinstance(action, Exit):
                self._end(action.code)
            else:
                self._do_plain(action)

    def _do_plain(self, action: Do) -> None:
        if action is Do.HANG_UP:
            print("handoff: the supervisor broke the protocol; the channel is closed", file=sys.stderr, flush=True)
            self._hang_up()
        elif action is Do.DISARM_LEASE:
            self._lease_at = None
        elif action is Do.TAKE_LOCK:
            self._take_lock()
        elif action is Do.RELEASE_LOCK and self._lock is not None:
            self._lock.release()
        elif action is Do.OPEN:
            self.begun.set_result(self._state)
            self._state = None
        elif action is Do.CANCEL_DRAIN:
            self._worker.cancel_drain()
        elif action is Do.RESUME:
            self._worker.run(self.handlers.resume, Event.RESUME_DONE, Event.RESUME_FAILED)

    def _say(self, message: m.Message) -> None:
        if self._channel is not None:
            fds = self._fds if isinstance(message, m.HandOver) else ()
            self._channel.send(self._machine.handoff, message, fds)

    def _hand_over(self, message: m.HandOver, file: Optional[int]) -> None:
        self._fds = [] if file is None else [file]
        if self._channel is not None and self._channel.version >= message.SINCE:
            self._do(self._machine.hand_over(message))
        self._close_fds()

    def _keep(self, message: m.TakeOver) -> None:
        """A process that cannot read the handed-over state must not take over."""
        try:
            self._state = unpack(message, self._fds)
        except StateError as error:
            self._do(self._machine.happen(Event.NOT_OPENED, str(error)))

    def _take_over(self, message: m.TakeOver) -> None:
        try:
            state = unpack(message, self._fds)
        except StateError as error:
            print(f"handoff: {error}", file=sys.stderr, flush=True)
        else:
            self._worker.run(lambda: self.handlers.take_over(state))

    def _close_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _answer(self, stage: m.Stage) -> None:
        if self._channel is None:
            return
        welcome = self._welcome
        version = self._channel.version
        adopted = m.Adopted(version, os.getpid(), welcome.service, welcome.generation, stage, welcome.listeners)
        self._channel.send(self._machine.handoff, adopted, self._listeners)
        self._send_version()

    def _run_seal(self, cut: bool) -> None:
        self._worker.run(lambda: self.handlers.seal(cut), Event.SEAL_DONE, Event.SEAL_FAILED)

    def _take_lock(self) -> None:
        threading.Thread(target=self._wait_for_lock, name="handoff-lock", daemon=True).start()

    def _wait_for_lock(self) -> None:
        try:
            if self.data is not None:
                self._lock = self._lock or DataLock(self.data)
                self._lock.take()
        except (LockError, OSError) as error:
            self.post(Event.NOT_LOCKED, str(error))
        else:
            self.post(Event.LOCKED)

    def _end(self, code: int) -> None:
        if self._entrance is not None:
            self._entrance.close()
        with self._guard:
            is_awaited = self._waiting > 0
        if not is_awaited:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    pass
            os._exit(code)
        if not self.begun.done():
            self.begun.set_exception(SystemExit(code))
        self.finished.set_result(code)


class Worker:
    """Runs the service's code, one call after the other, on a separate thread."""

    def __init__(self, post: Callable[[Event, str], None]) -> None:
        self._post = post
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: Optional[threading.Thread] = None
        self._drain: Optional[threading.Event] = None

    def drain(self, handlers: Handlers, grace_ms: int) -> None:
        """Does nothing if a drain that was not cancelled runs already."""
        if self._drain is not None and not self._drain.is_set():
            return
        cancelled = self._drain = threading.Event()
        grace = grace_ms / 1000
        self.run(lambda: handlers.drain(grace, cancelled), Event.DRAIN_DONE, Event.DRAIN_FAILED, cancelled)

    def cancel_drain(self) -> None:
        if self._drain is not None:
            self._drain.set()

    def run(
        self,
        code: Callable[[], None],
        done: Optional[Event] = None,
        failed: Optional[Event] = None,
        drain: Optional[threading.Event] = None,
    ) -> None:
        """Queues a call, and reports its result if that is wanted."""

        def job() -> None:
            try:
                code()
            except BaseException as error:
                # `sys.exit()` would end only this thread, and the supervisor would get no answers.
                traceback.print_exc()
                if failed is not None:
                    self._post(failed, f"{type(error).__name__}: {error}")
            else:
                if done is not None:
                    self._post(done, "")
            finally:
                if drain is not None:
                    drain.set()

        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="handoff-worker", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while True:
            self._jobs.get()()
