"""Lets a new supervisor connect: a socket at the path in ``HANDOFF_ADOPT``."""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
import uuid
from typing import List, Mapping, Optional, Tuple

from .channel import Channel
from .errors import FrameError
from .message import Adopt

#: Maximum number of silent connections to keep, the newest.
PENDING_MAX = 4
#: Maximum number of connections in the accept queue: supervisors that came and went while this process was frozen.
QUEUE_MAX = 64
#: Pause after a failed accept, in seconds.
REST_SECONDS = 1.0


class Entrance:
    """The socket, and the connections that have sent nothing yet."""

    def __init__(self, path: str) -> None:
        if not os.path.isabs(path):
            raise OSError(f"{path!r} is not an absolute path")
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self.socket.bind(path)
        except OSError:
            self.socket.close()
            raise
        try:
            self._file: Optional[Tuple[int, int]] = _identity(path)
            os.chmod(path, 0o600)
            self.socket.listen(QUEUE_MAX)
            self.socket.setblocking(False)
        except OSError:
            self.close()
            raise
        self.callers: List[Channel] = []
        self._rested_at = 0.0
        self._looks_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether to accept a connection now."""
        return time.monotonic() >= self._rested_at

    def next(self) -> Optional[Tuple[Channel, uuid.UUID, Adopt]]:
        """The next supervisor that has sent ``Adopt``."""
        self._let_in()
        callers, self.callers = self.callers, []
        found: Optional[Tuple[Channel, uuid.UUID, Adopt]] = None
        for channel in callers:
            if found is not None:
                self.callers.append(channel)
                continue
            try:
                received = channel.receive()
            except BlockingIOError:
                self.callers.append(channel)
                continue
            except (FrameError, OSError):
                received = None
            if received is not None and isinstance(received[1], Adopt):
                found = (channel, received[0], received[1])
                continue
            for fd in received[2] if received is not None else ():
                os.close(fd)
            channel.close()
        return found

    def look(self) -> None:
        """Restores the path if it or its directory is gone. For a process without a supervisor, once per
        second.
        """
        now = time.monotonic()
        if now < self._looks_at:
            return
        self._looks_at = now + REST_SECONDS
        if os.path.lexists(self._path):
            return
        try:
            os.makedirs(os.path.dirname(self._path), 0o700, exist_ok=True)
            again = Entrance(self._path)
        except OSError:
            return  # Retried later.
        self.socket.close()
        self.socket, self._file = again.socket, again._file

    def close(self) -> None:
        """Removes the path, if it is still the socket of this process."""
        try:
            if self._file is not None and _identity(self._path) == self._file:
                os.unlink(self._path)
        except OSError:
            pass
        self._file = None
        self.socket.close()

    def _let_in(self) -> None:
        if not self.is_open:
            return
        for _ in range(PENDING_MAX):
            try:
                caller, _address = self.socket.accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError:
                self._rested_at = time.monotonic() + REST_SECONDS
                break
            if _is_trusted(caller):
                self.callers.append(Channel(caller))
            else:
                caller.close()
        while len(self.callers) > PENDING_MAX:
            self.callers.pop(0).close()


def entrance(environ: Mapping[str, str]) -> Optional[Entrance]:
    """Opens the socket at the path from the supervisor. On failure the process can serve, but cannot be
    adopted.
    """
    path = environ.get("HANDOFF_ADOPT")
    if path is None:
        return None
    try:
        return Entrance(path)
    except OSError as error:
        hint = "If its supervisor ends, no other supervisor can adopt this process"
        text = f"handoff: cannot listen at {path}: {error}. {hint}"
        print(text, file=sys.stderr, flush=True)
        return None


def _identity(path: str) -> Tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _is_trusted(caller: socket.socket) -> bool:
    size = struct.calcsize("iII")
    _pid, uid, _gid = struct.unpack("iII", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid in (os.geteuid(), 0)
