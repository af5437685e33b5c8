"""Frames: a header of 36 bytes, then the body."""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import Iterable, Tuple, Type

from .errors import FrameError
from .message import BY_KIND, FROM_SERVICE, FROM_SUPERVISOR, Message, decode_body, encode_body

MAGIC = b"hoff"
HEADER = struct.Struct("<4sHBBHHI16s")
HEADER_LEN = HEADER.size + 4
FRAME_MAX = 65_536
FDS_MAX = 253
#: The version in frames that precede the agreement.
UNAGREED = 0

#: The oldest and the newest version that this library supports.
MINIMUM, CURRENT = 1, 4


def encode(version: int, handoff: uuid.UUID, message: Message) -> bytes:
    """Encodes one frame. ``version`` is the agreed one."""
    if version < message.SINCE:
        raise FrameError("kind", f"there is no {type(message).__name__} in version {version}")
    body = encode_body(message)
    if HEADER_LEN + len(body) > FRAME_MAX:
        raise FrameError("too long", f"a {type(message).__name__} with a body of {len(body)} bytes")
    if message.fd_count > FDS_MAX:
        raise FrameError("fd count", f"{message.fd_count} descriptors, {FDS_MAX} are allowed")
    version = UNAGREED if message.UNAGREED else version
    head = HEADER.pack(MAGIC, version, message.KIND, 0, message.fd_count, 0, len(body), handoff.bytes)
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def decode(
    packet: bytes, fds: int, agreed: int, sender: Iterable[Type[Message]] = FROM_SUPERVISOR
) -> Tuple[uuid.UUID, Message]:
    """Decodes one frame that came with ``fds`` descriptors. The checks are in the order of the protocol."""
    if len(packet) > FRAME_MAX:
        raise FrameError("too long", f"the packet has {len(packet)} bytes, {FRAME_MAX} are allowed")
    if len(packet) < HEADER_LEN:
        raise FrameError("short", f"the packet has {len(packet)} bytes, fewer than the {HEADER_LEN} of a header")
    magic, version, kind, flags, counted, reserved, length, handoff = HEADER.unpack_from(packet)
    body = packet[HEADER_LEN:]
    if magic != MAGIC:
        raise FrameError("magic", "the packet is not a handoff frame")
    (crc,) = struct.unpack_from("<I", packet, HEADER.size)
    if crc != zlib.crc32(body, zlib.crc32(packet[: HEADER.size])):
        raise FrameError("CRC", "the frame is damaged")
    if flags or reserved:
        raise FrameError("flags", "a flag or a reserved byte is set")
    if length != len(body):
        raise FrameError("length", f"the header announces a body of {length} bytes; received {len(body)}")
    known = BY_KIND.get(kind)
    if known is None or known not in sender or agreed < known.SINCE:
        raise FrameError("kind", f"no message of this direction and version has kind {kind:#04x}")
    message = decode_body(known, body)
    agreed = UNAGREED if known.UNAGREED else agreed
    if version != agreed:
        raise FrameError("version", f"the frame has version {version}; agreed was {agreed}")
    if not counted == fds == message.fd_count:
        text = f"the message needs {message.fd_count}, the header says {counted}; received {fds}"
        raise FrameError("fd count", text)
    return uuid.UUID(bytes=handoff), message


def common_version(minimum: int, current: int) -> int:
    """The newest common version with a peer of this range, or 0 if there is none."""
    version = min(current, CURRENT)
    fits = max(minimum, MINIMUM) <= version
    return version if fits else 0


__all__ = ["FROM_SERVICE", "FROM_SUPERVISOR", "decode", "encode", "common_version"]
