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

#: Maximum number of unsent messages; then the supervisor is given up.
UNSENT_MAX = 64


class Channel:
    """One end of the channel. It never blocks."""

    def __init__(self, sock: socket.socket, version: int = 0) -> None:
        self._socket = sock
        self.version = version
        #: With duplicates of their descriptors, and whether it is a handed-over state.
        self._unsent: Deque[Tuple[bytes, List[int], bool]] = deque()
        #: Whether the peer would miss a message because it does not read: then give it up.
        self.is_lost = False

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether a message waits until the peer reads."""
        return bool(self._unsent)

    def send(self, handoff: uuid.UUID, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends a message, or queues it until the peer reads. A closed peer is detected on receive;
        ``is_lost`` reports a peer that no longer reads.
        """
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
        """Sends queued messages, as far as the peer reads."""
        while self._unsent and self._try(*self._unsent[0][:2]):
            self._forget_first()

    def _try(self, packet: bytes, fds: Sequence[int]) -> bool:
        """Whether the message is done, even without success."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            try:
                self._socket.sendmsg([packet], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                continue  # Comes once.
            except OSError:
                pass
            return True

    def _forget_first(self) -> None:
        _packet, fds, _is_state = self._unsent.popleft()
        for fd in fds:
            os.close(fd)

    def _forget_states(self) -> None:
        """Of handed-over states, only the last one counts."""
        for _ in range(len(self._unsent)):
            if self._unsent[0][2]:
                self._forget_first()
            else:
                self._unsent.rotate(-1)

    def receive(self, block: bool = False) -> Optional[Tuple[uuid.UUID, Message, List[int]]]:
        """The next message, with its descriptors. ``None`` at the end. Raises ``BlockingIOError`` if there is
        none yet, and ``FrameError`` for an invalid frame.
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if block else socket.MSG_DONTWAIT)
        room = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
        while True:
            try:
                packet, control, found, _ = self._socket.recvmsg(FRAME_MAX, room, flags)
                break
            except ConnectionResetError:
                continue  # Comes once; packets may follow.
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
        """Closes the channel."""
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
    """The channel from the supervisor; ``None`` if there is no supervisor."""
    text = environ.get("HANDOFF_FD")
    if text is None:
        return None
    if environ.get("HANDOFF_CHANNEL") == "stream":
        raise InheritError('this library needs packets; remove channel = "stream" from the service file')
    if not (text.isascii() and text.isdigit() and int(text) > 2):
        raise InheritError(f"HANDOFF_FD={text!r} is not the number of a descriptor above 2")
    fd = int(text)
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        hint = "was it closed by a wrapper, or is the variable left over from a parent?"
        raise InheritError(f"cannot use descriptor {fd} of HANDOFF_FD ({error}); {hint}") from error
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        sock.detach()
        raise InheritError(f"descriptor {fd} of HANDOFF_FD is not a unix socket of type SOCK_SEQPACKET")
    return Channel(sock)
