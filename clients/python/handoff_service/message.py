"""The messages, and the encoding of their bodies."""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Dict, Tuple, Type, Union

from .errors import FrameError

NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")
#: Maximum size of the content of a ``State`` in the message itself, and in a file.
INLINE_MAX, CONTENT_MAX = 32 * 1024, 64 * 1024 * 1024


class Mode(IntEnum):
    """Whether two processes may serve at the same time."""

    EXCLUSIVE = 0
    OVERLAP = 1


class Stage(IntEnum):
    """The activity of a process at its adoption."""

    SERVING = 0
    WORKING = 1
    WAITING = 2
    LEAVING = 3


class Message:
    """A message. ``FIELDS`` has the type of each field, in the order of the body."""

    KIND: ClassVar[int]
    FIELDS: ClassVar[Tuple[str, ...]] = ()
    #: Whether it precedes the version agreement, so that its frame carries version 0.
    UNAGREED: ClassVar[bool] = False
    #: The first version with this message.
    SINCE: ClassVar[int] = 0

    @property
    def fd_count(self) -> int:
        """The number of descriptors that travel with it."""
        return 0


@dataclass(frozen=True)
class Hello(Message):
    """The first message of a process: the versions that it supports."""

    KIND, FIELDS, UNAGREED = 0x01, ("u16", "u16", "u32"), True
    minimum: int
    current: int
    pid: int


@dataclass(frozen=True)
class Prepared(Message):
    """The successor has started and is parked."""

    KIND = 0x02


@dataclass(frozen=True)
class Drained(Message):
    """The incumbent has only short requests left."""

    KIND = 0x03


@dataclass(frozen=True)
class Sealed(Message):
    """The incumbent has stopped, and released the data."""

    KIND = 0x04


@dataclass(frozen=True)
class SealFailed(Message):
    """The incumbent could not drain or seal."""

    KIND, FIELDS = 0x05, ("string",)
    reason: str


@dataclass(frozen=True)
class Ready(Message):
    """The successor accepts, or reports that it cannot."""

    KIND, FIELDS = 0x06, ("bool", "string")
    healthy: bool
    reason: str = ""


@dataclass(frozen=True)
class Resumed(Message):
    """The incumbent serves again."""

    KIND = 0x07


@dataclass(frozen=True)
class ResumeFailed(Message):
    """The incumbent cannot serve again."""

    KIND, FIELDS = 0x08, ("string",)
    reason: str


@dataclass(frozen=True)
class Progress(Message):
    """A sign of life."""

    KIND, FIELDS = 0x09, ("string",)
    note: str = ""


@dataclass(frozen=True)
class Adopted(Message):
    """The answer to a new supervisor."""

    KIND, FIELDS, UNAGREED = 0x0A, ("u16", "u32", "name", "u64", "stage", "names"), True
    version: int
    pid: int
    service: str
    generation: int
    stage: Stage
    listeners: Tuple[str, ...]

    @property
    def fd_count(self) -> int:
        return len(self.listeners)


@dataclass(frozen=True)
class _State(Message):
    """The two messages with the name ``State``. The content is inside, or in a file that travels along."""

    FIELDS, SINCE = ("u32", "u64", "u32", "bytes"), 2
    format: int
    length: int
    crc32: int
    inline: bytes

    def __post_init__(self) -> None:
        if self.length > CONTENT_MAX or len(self.inline) > INLINE_MAX:
            raise ValueError(f"a state of {max(self.length, len(self.inline))} bytes is too long")
        if self.inline and len(self.inline) != self.length:
            raise ValueError(f"a state of {self.length} bytes is announced; received {len(self.inline)}")

    @property
    def fd_count(self) -> int:
        return int(self.length > 0 and not self.inline)


@dataclass(frozen=True)
class HandOver(_State):
    """``State`` for the successor."""

    KIND = 0x0B


@dataclass(frozen=True)
class TakeOver(_State):
    """``State`` from the predecessor."""

    KIND = 0x89


@dataclass(frozen=True)
class Release(Message):
    """The server's version text."""

    KIND, FIELDS, SINCE = 0x0C, ("string",), 4
    version: str


@dataclass(frozen=True)
class Welcome(Message):
    """The answer to ``Hello``: the process's role, and its listeners."""

    KIND, FIELDS, UNAGREED = 0x81, ("u16", "name", "u64", "mode", "names", "u64"), True
    version: int
    service: str
    generation: int
    mode: Mode
    listeners: Tuple[str, ...]
    lease_ms: int

    @property
    def fd_count(self) -> int:
        return len(self.listeners)


@dataclass(frozen=True)
class Prepare(Message):
    """To a successor: start up. To an incumbent: drain."""

    KIND, FIELDS = 0x82, ("u64", "u64")
    grace_ms: int
    lease_ms: int


@dataclass(frozen=True)
class Seal(Message):
    """Stop, make everything durable, and release the data."""

    KIND, FIELDS = 0x83, ("u64", "bool")
    lease_ms: int
    cut: bool


@dataclass(frozen=True)
class Grant(Message):
    """Precedes a ``Seal``: how long the program of the process may take to end."""

    KIND, FIELDS, SINCE = 0x8A, ("u64",), 3
    end_ms: int


@dataclass(frozen=True)
class Begin(Message):
    """Take the lock, open the data, and accept."""

    KIND = 0x84


@dataclass(frozen=True)
class Commit(Message):
    """To the successor: you are the incumbent. To the incumbent: leave."""

    KIND = 0x85


@dataclass(frozen=True)
class Abort(Message):
    """The process is dismissed."""

    KIND = 0x86


@dataclass(frozen=True)
class Resume(Message):
    """Serve again."""

    KIND = 0x87


@dataclass(frozen=True)
class Adopt(Message):
    """The first message of a new supervisor."""

    KIND, FIELDS, UNAGREED = 0x88, ("u16", "u16", "u64"), True
    minimum: int
    current: int
    lease_ms: int


FROM_SERVICE: Tuple[Type[Message], ...] = (
    Hello, Prepared, Drained, Sealed, SealFailed, Ready, Resumed, ResumeFailed, Progress, Adopted, HandOver, Release,
)  # fmt: skip
FROM_SUPERVISOR: Tuple[Type[Message], ...] = (
    Welcome, Prepare, Seal, Begin, Commit, Abort, Resume, Adopt, TakeOver, Grant,
)  # fmt: skip
BY_KIND: Dict[int, Type[Message]] = {one.KIND: one for one in FROM_SERVICE + FROM_SUPERVISOR}

INTEGERS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q"}
CHOICES: Dict[str, Union[Type[Mode], Type[Stage]]] = {"mode": Mode, "stage": Stage}


def encode_body(message: Message) -> bytes:
    """Encodes the body of a message."""
    values = dataclasses.astuple(message)  # type: ignore[call-overload]
    try:
        return b"".join(_encode(kind, value) for kind, value in zip(message.FIELDS, values))
    except (struct.error, ValueError, UnicodeError) as error:
        raise FrameError("body", f"a {type(message).__name__} cannot be written: {error}") from error


def decode_body(kind: Type[Message], body: bytes) -> Message:
    """Decodes a message from its whole body."""
    reader = _Reader(body)
    try:
        message = kind(*[reader.read(field) for field in kind.FIELDS])
    except (struct.error, ValueError) as error:
        raise FrameError("body", f"a {kind.__name__} is malformed: {error}") from error
    if reader.left:
        raise FrameError("trailing", f"{reader.left} bytes follow a {kind.__name__}")
    return message


def _encode(kind: str, value: Any) -> bytes:
    if kind in INTEGERS:
        return struct.pack(INTEGERS[kind], value)
    if kind == "bool":
        return struct.pack("<B", bool(value))
    if kind in CHOICES:
        return struct.pack("<I", CHOICES[kind](value))
    if kind == "names":
        return struct.pack("<Q", len(value)) + b"".join(_encode("name", name) for name in value)
    text = value if kind == "bytes" else value.encode()
    if kind == "name":
        _check_name(value)
    return struct.pack("<Q", len(text)) + bytes(text)


def _check_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a name")
    return text


class _Reader:
    """Reads one field after the other from a body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._body) - self._at

    def read(self, kind: str) -> Any:
        if kind in INTEGERS:
            return self._integer(INTEGERS[kind])
        if kind == "bool":
            value = self._integer("<B")
            if value > 1:
                raise ValueError(f"{value} is not a bool")
            return value == 1
        if kind in CHOICES:
            return CHOICES[kind](self._integer("<I"))
        if kind == "names":
            count = self._integer("<Q")
            # Each takes at least nine bytes; a made-up count must not cost memory.
            if count > self.left // 9:
                raise ValueError(f"{count} names do not fit")
            return tuple(self.read("name") for _ in range(count))
        content = self._take(self._integer("<Q"))
        if kind == "bytes":
            return content
        text = content.decode()
        return _check_name(text) if kind == "name" else text

    def _integer(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"{count} bytes are announced; {self.left} are left")
        self._at += count
        return self._body[self._at - count : self._at]
