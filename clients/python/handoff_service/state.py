"""State that a service hands to its successor, in the message or in a sealed file."""

from __future__ import annotations

import fcntl
import os
import zlib
from dataclasses import dataclass, field
from typing import List, Optional, Tuple, Type, TypeVar

from .errors import StateError
from .message import CONTENT_MAX, INLINE_MAX, TakeOver, _State

#: Seals that forbid changes of the content, the length and the seals.
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: Forbids execution. Kernels before 6.3 reject the flag; newer ones can be configured to require it.
MFD_NOEXEC_SEAL = 0x8

Kind = TypeVar("Kind", bound=_State)


@dataclass(frozen=True)
class State:
    """Content for the successor, and the service's own format number: increase it when the meaning changes,
    and refuse formats that you do not support. The library does not interpret either.
    """

    format: int
    #: May be secret, so it appears in no log.
    content: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.format < 2**32:
            raise StateError(f"{self.format} is not a format: it has 32 bits")
        if len(self.content) > CONTENT_MAX:
            raise StateError(f"a state of {len(self.content)} bytes is too long: it has at most {CONTENT_MAX}")


def pack(state: State, kind: Type[Kind]) -> Tuple[Kind, Optional[int]]:
    """The message, and the file that travels with it if the content is long."""
    content = state.content
    is_short = len(content) <= INLINE_MAX
    message = kind(state.format, len(content), zlib.crc32(content), content if is_short else b"")
    return message, None if is_short else sealed_file(content)


def unpack(message: TakeOver, fds: List[int]) -> State:
    """The state from a message. Leaves the descriptors open."""
    content = message.inline
    if fds:
        try:
            content = _read(fds[0], message.length)
        except OSError as error:
            raise StateError(f"cannot read the handed-over state: {error}") from error
    if len(content) != message.length or zlib.crc32(content) != message.crc32:
        raise StateError("cannot read the handed-over state: its content is not the one that was announced")
    return State(message.format, content)


def sealed_file(content: bytes, seals: int = SEALS) -> int:
    """Creates a file in memory with this content."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("handoff-state", flags | MFD_NOEXEC_SEAL)
    except OSError:
        fd = os.memfd_create("handoff-state", flags)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _read(fd: int, length: int) -> bytes:
    if not _is_sealed(fd):
        raise StateError("cannot read the handed-over state: its file is not sealed against every change")
    found = os.fstat(fd).st_size
    if found != length:
        raise StateError(f"cannot read the handed-over state: it has {found} bytes, {length} were announced")
    parts: List[bytes] = []
    at = 0
    # All holders of the file share its position, so this does not use it.
    while at < length:
        part = os.pread(fd, length - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALS == SEALS
    except OSError:
        return False  # Not a memory file.
