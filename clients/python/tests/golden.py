"""The files that fix the encoding of the protocol."""

from __future__ import annotations

import uuid
import zlib
from pathlib import Path
from typing import Dict

from handoff_service import State
from handoff_service import message as m
from handoff_service.state import pack

GOLDEN = Path(__file__).resolve().parents[3] / "protocol" / "tests" / "golden"
ID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")

#: The content of the files that both versions share, by file name.
MESSAGES: Dict[str, m.Message] = {
    "01_Hello": m.Hello(1, 1, 4711),
    "02_Prepared": m.Prepared(),
    "03_Drained": m.Drained(),
    "04_Sealed": m.Sealed(),
    "05_SealFailed": m.SealFailed("disk full"),
    "06_Ready": m.Ready(True, ""),
    "07_Resumed": m.Resumed(),
    "08_ResumeFailed": m.ResumeFailed("no such bucket"),
    "09_Progress": m.Progress("3 uploads"),
    "0a_Adopted": m.Adopted(1, 4711, "s3", 7, m.Stage.WAITING, ("http", "admin")),
    "81_Welcome": m.Welcome(1, "s3", 7, m.Mode.EXCLUSIVE, ("http", "admin"), 5_000),
    "82_Prepare": m.Prepare(30_000, 35_000),
    "83_Seal": m.Seal(5_000, False),
    "84_Begin": m.Begin(),
    "85_Commit": m.Commit(),
    "86_Abort": m.Abort(),
    "87_Resume": m.Resume(),
    "88_Adopt": m.Adopt(1, 1, 5_000),
}


#: Additions in version 2.
SINCE_2: Dict[str, m.Message] = {
    "0b_State": pack(State(3, b"two sessions"), m.HandOver)[0],
    "89_State": m.TakeOver(3, 40_000, zlib.crc32(b"\xa5" * 40_000), b""),
}

#: Additions in version 3.
SINCE_3: Dict[str, m.Message] = {
    "8a_Grant": m.Grant(45_000),
}

#: Additions in version 4.
SINCE_4: Dict[str, m.Message] = {
    "0c_Release": m.Release("1.2.3"),
}


def frame(name: str, version: int = 1) -> bytes:
    """The bytes of one file."""
    return bytes.fromhex((GOLDEN / f"v{version}" / f"{name}.hex").read_text())
