"""The channel: a unix socket of type ``SOCK_SEQPACKET``, on which one packet is one frame."""

from __future__ import annotations

import array
import os
import socket
import uuid
from collections import deque
from typing import Deque, List, Mapping, Optional, Sequence, Tuple

from .errors import FrameError, InheritError
from .frame import FDS_MAX, FRAME_MAX, decode, encode
from .message import HandOver, Message, Progress

#: A supervisor that does not read for so many messages is given up.
UNSENT_MAX = 64


class Channel:
    """One end. It never blocks."""

    def __init__(self, sock: socket.socket, version: int = 0) -> None:
        self._socket = sock
        self.version = version
        #: With duplicates of their descriptors, and whether it is a state that is handed over.
        self._unsent: Deque[Tuple[bytes, List[int], bool]] = deque()
        #: Whether the peer would miss a message, since it does not read: then it is to be given up.
        self.is_lost = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether something waits until the peer reads."""
        return bool(self._unsent)

    def send(self, handoff: uuid.UUID, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends, or keeps the message until the peer reads. That the peer is gone is seen when receiving; that it reads
        nothing any more is told by ``is_lost``."""
        if isinstance(message, Progress) and self._unsent:
            return
        packet = encode(self.version, handoff, message)
        self.flush()
        if not self._unsent and self._try(packet, fds):
            return
        is_state = isinstance(message, HandOver)
        if is_state:
            self._forget_states()
        if len(self._unsent) >= UNSENT_MAX:
            self.is_lost = True
            return
        self._unsent.append((packet, [os.dup(fd) for fd in fds], is_state))

    def flush(self) -> None:
        """Sends what was kept, as far as the peer reads."""
        while self._unsent and self._try(*self._unsent[0][:2]):
            self._forget_first()

    def _try(self, packet: bytes, fds: Sequence[int]) -> bool:
        """Whether that is done, be it in vain."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            try:
                self._socket.sendmsg([packet], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                continue  # It comes once.
            except OSError:
                pass
            return True

    def _forget_first(self) -> None:
        _packet, fds, _is_state = self._unsent.popleft()
        for fd in fds:
            os.close(fd)

    def _forget_states(self) -> None:
        """Of what is handed over the last one counts."""
        for _ in range(len(self._unsent)):
            if self._unsent[0][2]:
                self._forget_first()
            else:
                self._unsent.rotate(-1)

    def receive(self, block: bool = False) -> Optional[Tuple[uuid.UUID, Message, List[int]]]:
        """The next message, with its descriptors. ``None`` at the end; raises ``BlockingIOError`` if there is none yet,
        and ``FrameError`` if it is not a message."""
        flags = socket.MSG_CMSG_CLOEXEC | (0 if block else socket.MSG_DONTWAIT)
        room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
        while True:
            try:
                packet, control, found, _ = self._socket.recvmsg(FRAME_MAX, room, flags)
                break
            except ConnectionResetError:
                continue  # It comes once, and packets may be queued behind it.
        fds = _descriptors(control)
        try:
            if found & socket.MSG_TRUNC:
                raise FrameError("too long", f"the packet has more than {FRAME_MAX} bytes")
            if found & socket.MSG_CTRUNC:
                raise FrameError("descriptors lost", "is RLIMIT_NOFILE too low?")
            if not packet:
                return None
            handoff, message = decode(packet, len(fds), self.version)
        except FrameError:
            for fd in fds:
                os.close(fd)
            raise
        return handoff, message, fds

    def close(self) -> None:
        """Hangs up."""
        while self._unsent:
            self._forget_first()
        self._socket.close()


def _descriptors(control: List[Tuple[int, int, bytes]]) -> List[int]:
    fds = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def inherited(environ: Mapping[str, str]) -> Optional[Channel]:
    """The channel that the supervisor gave this process; ``None`` if there is no supervisor."""
    text = environ.get("HANDOFF_FD")
    if text is None:
        return None
    if environ.get("HANDOFF_CHANNEL") == "stream":
        raise InheritError('this library speaks over packets; remove channel = "stream" from the service file')
    if not (text.isascii() and text.isdigit() and int(text) > 2):
        raise InheritError(f"HANDOFF_FD={text!r} is not the number of a descriptor above 2")
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        hint = "was it closed by a wrapper, or is the variable left over from a parent?"
        raise InheritError(f"descriptor {fd} of HANDOFF_FD cannot be used ({error}); {hint}") from error
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.detach()
        raise InheritError(f"descriptor {fd} of HANDOFF_FD is not a unix socket of type SOCK_SEQPACKET")
    return Channel(sock)
