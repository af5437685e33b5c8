"""The blocking API: ``start``, ``begin``, ``ready``, ``wait``."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
import uuid
from types import TracebackType
from typing import Dict, List, Mapping, NoReturn, Optional, Tuple, Type, Union

from . import message as m
from .adoption import entrance
from .channel import Channel, inherited
from .driver import Driver, Handlers
from .errors import FrameError, HandoffError, InheritError, LockError
from .frame import CURRENT, MINIMUM
from .lock import DataLock
from .machine import Event
from .state import State

Address = Union[Tuple[str, int], str]


class Service:
    """One process of a service. Created by ``start``."""

    def __init__(self, listeners: Dict[str, socket.socket], driver: Optional[Driver], welcome: Optional[m.Welcome]):
        #: The listening sockets, by the names in the service file. Do not use them before ``begin`` has
        #: returned: the serving process still does.
        self.listeners = listeners
        self._driver = driver
        self._welcome = welcome
        self._lock: Optional[DataLock] = None
        self._is_ready = False

    @property
    def is_supervised(self) -> bool:
        """Whether there is a supervisor. The service also runs without one."""
        return self._driver is not None

    @property
    def generation(self) -> int:
        """The generation of this process once it is committed; 0 without a supervisor."""
        return self._welcome.generation if self._welcome is not None else 0

    @property
    def mode(self) -> m.Mode:
        """Whether another process of the service may serve at the same time."""
        return self._welcome.mode if self._welcome is not None else m.Mode.EXCLUSIVE

    def note(self, text: str) -> None:
        """Sets a note for people about what this process is waiting for."""
        if self._driver is not None:
            self._driver.note = text

    def hand_over(self, format: int, content: bytes) -> None:
        """Hands state to the successor, if there is one: state that is not in the data and would otherwise be
        lost. Call it in ``drain`` or ``seal``; the last call counts. Raises ``StateError`` above 64 MiB. The
        state is dropped at a stop, and if the supervisor or the new process does not support it.
        """
        state = State(format, bytes(content))
        if self._driver is not None:
            self._driver.hand_over(state)

    def begin(self, data: Union[str, "os.PathLike[str]", None] = None) -> Optional[State]:
        """Reports that start-up is complete, and blocks until this process must serve. In exclusive mode it
        then holds the lock of the directory ``data``, and this returns the predecessor's state. If the
        supervisor dismisses the process, this raises ``SystemExit``.
        """
        directory = os.fspath(data) if data is not None else None
        driver = self._driver
        if driver is None:
            if directory is not None:
                self._lock = DataLock(directory)
                self._lock.take()
            return None
        if directory is not None:
            # Before the predecessor is asked to give up anything.
            try:
                DataLock.check(directory)
            except LockError as error:
                self.unhealthy(str(error))
        driver.data = directory
        driver.post(Event.STARTED)
        state: Optional[State] = driver.wait(driver.begun)
        return state

    def ready(self, handlers: Optional[Handlers] = None) -> None:
        """Reports that this process accepts. From now on the library calls ``handlers`` to hand over."""
        self._is_ready = True
        if self._driver is not None:
            self._driver.handlers = handlers or Handlers()
            self._driver.post(Event.OPENED)

    def unhealthy(self, reason: str) -> NoReturn:
        """Reports that this process cannot serve, and ends it."""
        if self._driver is None:
            raise SystemExit(f"not healthy: {reason}")
        self._driver.post(Event.NOT_OPENED, reason)
        raise SystemExit(self._driver.wait(self._driver.finished))

    def wait(self) -> int:
        """Blocks until the process must end, and returns its exit code. Nothing is left to do then. If
        nothing waits, the library ends the process at that moment. Without a supervisor it blocks forever.
        """
        if self._driver is None:
            threading.Event().wait()
            return 0
        return int(self._driver.wait(self._driver.finished))

    def __enter__(self) -> "Service":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], at: Optional[TracebackType]
    ) -> None:
        """Reports an exception before ``ready`` to the supervisor."""
        if isinstance(error, Exception) and not self._is_ready and self._driver is not None:
            traceback.print_exception(kind, error, at)
            self.unhealthy(f"{type(error).__name__}: {error}")


def start(
    bind: Optional[Mapping[str, Address]] = None,
    environ: Optional[Mapping[str, str]] = None,
    version: str = "",
) -> Service:
    """Connects to the supervisor and gets the listeners. Without a supervisor, binds those of ``bind``: by
    name, a host and a port, or the path of a unix socket. ``version`` is the version text of this server for
    people. Call it once, before everything else.
    """
    environ = os.environ if environ is None else environ
    channel = inherited(environ)
    if channel is None:
        return Service({name: _listen(address) for name, address in (bind or {}).items()}, None, None)
    try:
        handoff = uuid.UUID(environ.get("HANDOFF_ID", ""))
    except ValueError as error:
        raise InheritError(f"HANDOFF_ID={environ.get('HANDOFF_ID')!r} is not a UUID") from error
    way_in = entrance(environ)
    try:
        welcome, fds = _greet(channel, handoff)
    except BaseException:
        if way_in is not None:
            way_in.close()
        raise
    listeners = {name: socket.socket(fileno=fd) for name, fd in zip(welcome.listeners, fds)}
    driver = Driver(channel, way_in, handoff, welcome, [os.dup(fd) for fd in fds])
    if version:
        driver.tell_version(version)
    driver.start()
    return Service(listeners, driver, welcome)


def without_variables(environ: Optional[Mapping[str, str]] = None) -> Dict[str, str]:
    """The environment for child programs, without the variables for this process."""
    own = ("HANDOFF_FD", "HANDOFF_ID", "HANDOFF_ADOPT", "HANDOFF_CHANNEL")
    return {name: value for name, value in (os.environ if environ is None else environ).items() if name not in own}


def _greet(channel: Channel, handoff: uuid.UUID) -> Tuple[m.Welcome, List[int]]:
    channel.send(handoff, m.Hello(MINIMUM, CURRENT, os.getpid()))
    try:
        received = channel.receive(block=True)
    except FrameError as error:
        if error.name == "descriptors lost":
            channel.version = CURRENT
            channel.send(handoff, m.Ready(False, str(error)))
        raise
    if received is None:
        # The supervisor no longer waits for this process.
        print("handoff: the supervisor closed the channel before it sent Welcome", file=sys.stderr, flush=True)
        raise SystemExit(0)
    found, message, fds = received
    if isinstance(message, m.Abort) and found == handoff:
        raise SystemExit(0)
    if not isinstance(message, m.Welcome) or found != handoff:
        what = f"a {type(message).__name__} of handoff {found}"
        raise HandoffError(f"received {what} instead of the Welcome of {handoff}")
    if not MINIMUM <= message.version <= CURRENT:
        raise HandoffError(f"the supervisor chose version {message.version}, which was not offered")
    channel.version = message.version
    return message, fds


def _listen(address: Address) -> socket.socket:
    if isinstance(address, str):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
    else:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(address)
    listener.listen(4096)
    return listener
