"""Frames, byte for byte, and every error by its name."""

from __future__ import annotations

import struct
import unittest
import zlib

from handoff_service import message as m
from handoff_service.errors import FrameError
from handoff_service.frame import FRAME_MAX, HEADER_LEN, common_version, decode, encode

from .golden import GOLDEN, ID, MESSAGES, SINCE_2, SINCE_3, SINCE_4, frame

VERSIONS = {
    1: MESSAGES,
    2: {**MESSAGES, **SINCE_2},
    3: {**MESSAGES, **SINCE_2, **SINCE_3},
    4: {**MESSAGES, **SINCE_2, **SINCE_3, **SINCE_4},
}


def sealed(head: bytes, body: bytes = b"") -> bytes:
    """A frame with a correct checksum, whatever else is wrong."""
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


class Golden(unittest.TestCase):
    def test_there_is_a_message_for_every_file(self) -> None:
        for version, messages in VERSIONS.items():
            files = {path.stem for path in (GOLDEN / f"v{version}").glob("[0-9]*.hex")}
            self.assertEqual(files, set(messages))

    def test_frames_are_written_and_read_byte_for_byte(self) -> None:
        for version, name, message in [(v, *it) for v, messages in VERSIONS.items() for it in messages.items()]:
            with self.subTest(name, version=version):
                packet = frame(name, version)
                self.assertEqual(encode(version, ID, message), packet)
                sender = m.FROM_SERVICE if message.KIND < 0x80 else m.FROM_SUPERVISOR
                agreed = 0 if message.UNAGREED else version
                self.assertEqual(decode(packet, message.fd_count, agreed, sender), (ID, message))


class Errors(unittest.TestCase):
    def name_of(self, packet: bytes, fds: int = 0, agreed: int = 1) -> str:
        with self.assertRaises(FrameError) as caught:
            decode(packet, fds, agreed)
        return caught.exception.name

    def test_each_has_its_name(self) -> None:
        seal = frame("83_Seal")
        head, body = seal[:32], seal[HEADER_LEN:]

        def changed(at: int, byte: int) -> bytes:
            return sealed(head[:at] + bytes([byte]) + head[at + 1 :], body)

        def with_body(body: bytes) -> bytes:
            return sealed(head[:12] + struct.pack("<I", len(body)) + head[16:], body)

        cases = {
            "too long": bytes(FRAME_MAX + 1),
            "short": seal[:35],
            "magic": b"GET " + seal[4:],
            "CRC": seal[:-1] + b"\x01",
            "flags": changed(7, 1),
            "length": changed(12, 8),
            "kind": changed(6, 0x03),
            "body": with_body(body[:-1] + b"\x02"),
            "trailing": with_body(body + b"\x00"),
            "version": changed(4, 2),
            "fd count": changed(8, 1),
        }
        for name, packet in cases.items():
            with self.subTest(name):
                self.assertEqual(self.name_of(packet), name)
        self.assertEqual(self.name_of(changed(10, 1)), "flags")
        self.assertEqual(self.name_of(seal, fds=1), "fd count")
        self.assertEqual(self.name_of(frame("81_Welcome"), fds=1, agreed=0), "fd count")
        self.assertEqual(self.name_of(with_body(body[:3])), "body")

    def test_the_first_thing_that_is_wrong_is_told(self) -> None:
        self.assertEqual(self.name_of(bytes(40)), "magic")
        wrong = bytearray(frame("83_Seal"))
        wrong[7] = 1
        self.assertEqual(self.name_of(bytes(wrong)), "CRC")

    def test_bodies_hold_no_nonsense(self) -> None:
        welcome = frame("81_Welcome")
        body = bytearray(welcome[HEADER_LEN:])
        for at, byte in [(2, 255), (10, ord("A")), (20, 2), (24, 200), (31, 255)]:
            changed = body[:at] + bytes([byte]) + body[at + 1 :]
            with self.subTest(at=at):
                self.assertEqual(self.name_of(sealed(welcome[:32], bytes(changed)), fds=2, agreed=0), "body")
        for name in ("", "-a", "A", "x" * 65, "a b"):
            with self.assertRaises(FrameError):
                encode(1, ID, m.Welcome(1, name, 1, m.Mode.OVERLAP, (), 1))

    def test_a_state_is_known_since_version_2_and_does_not_contradict_itself(self) -> None:
        packet = frame("89_State", 2)
        self.assertEqual(self.name_of(packet, fds=1, agreed=1), "kind")
        self.assertEqual(self.name_of(packet, fds=0, agreed=2), "fd count")
        with self.assertRaises(FrameError) as caught:
            encode(1, ID, SINCE_2["0b_State"])
        self.assertEqual(caught.exception.name, "kind")
        for length, inline in [(64 * 1024 * 1024 + 1, b""), (1, b"ab"), (32_769, bytes(32_769))]:
            body = struct.pack("<IQIQ", 3, length, 0, len(inline)) + inline
            head = packet[:12] + struct.pack("<I", len(body)) + packet[16:32]
            self.assertEqual(self.name_of(sealed(head, body), fds=1, agreed=2), "body")

    def test_what_is_too_long_is_not_sent(self) -> None:
        self.assertEqual(len(encode(1, ID, m.Progress("x" * (65_500 - 8)))), FRAME_MAX)
        with self.assertRaises(FrameError) as caught:
            encode(1, ID, m.Progress("x" * (65_500 - 7)))
        self.assertEqual(caught.exception.name, "too long")
        with self.assertRaises(FrameError) as caught:
            encode(1, ID, m.Welcome(1, "s", 1, m.Mode.OVERLAP, ("l",) * 254, 1))
        self.assertEqual(caught.exception.name, "fd count")


class Versions(unittest.TestCase):
    def test_the_newest_that_both_speak_is_chosen(self) -> None:
        self.assertEqual([common_version(*range_) for range_ in [(1, 1), (1, 9), (0, 0), (9, 9)]], [1, 4, 0, 0])
