"""The machine of a process: its reaction to each message and event. No clock, no descriptors, no threads."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import Enum
from typing import List, Union

from . import message as m

#: Drain time of a process that must leave, in milliseconds.
LEAVE_GRACE_MS = 30_000


class Event(Enum):
    """Events other than messages. The values are the words of the tables."""

    CLOSED = "closed"
    LEASE = "lease"
    STARTED = "started"
    LOCKED = "locked"
    NOT_LOCKED = "not locked"
    OPENED = "opened"
    NOT_OPENED = "not opened"
    DRAIN_DONE = "drain done"
    DRAIN_FAILED = "drain failed"
    SEAL_DONE = "seal done"
    SEAL_FAILED = "seal failed"
    RESUME_DONE = "resume done"
    RESUME_FAILED = "resume failed"


class Do(Enum):
    """Actions without arguments."""

    HANG_UP = "HangUp"
    DISARM_LEASE = "DisarmLease"
    TAKE_LOCK = "TakeLock"
    RELEASE_LOCK = "ReleaseLock"
    OPEN = "Open"
    CANCEL_DRAIN = "CancelDrain"
    RESUME = "Resume"


@dataclass(frozen=True)
class Send:
    """Send a message with the current id."""

    message: m.Message


@dataclass(frozen=True)
class KeepState:
    """Store the predecessor's state; it replaces a stored one."""

    message: m.TakeOver


@dataclass(frozen=True)
class TakeOver:
    """Pass the predecessor's state to the service."""

    message: m.TakeOver


@dataclass(frozen=True)
class AnswerAdopt:
    """Send ``Adopted``."""

    stage: m.Stage


@dataclass(frozen=True)
class ArmLease:
    """Restart the lease with this duration."""

    ms: int


@dataclass(frozen=True)
class Drain:
    """Run the service's drain code, unless it runs already."""

    grace_ms: int
    #: Whether this process is dismissed before the commit.
    refused: bool = False


@dataclass(frozen=True)
class RunSeal:
    """Run the service's seal code, after its drain code has returned."""

    cut: bool


@dataclass(frozen=True)
class Exit:
    """End the process."""

    code: int


Action = Union[Do, Send, KeepState, TakeOver, AnswerAdopt, ArmLease, Drain, RunSeal, Exit]
Actions = List[Action]


#: The states of an uncommitted process.
UNCOMMITTED = ("Starting", "Parked", "Locking", "Opening", "Ready", "Dismissed")


class Process:
    """A process from its start to its end.

    Before the commit it is ``Starting``, ``Parked``, ``Locking``, ``Opening`` and ``Ready``, or ``Dismissed``
    if it had begun to serve. After the commit it is ``Serving``, ``Draining``, ``Sealing``, ``Sealed``,
    ``Failed``, ``Waiting``, ``Reopening`` or ``Leaving``. The last state is ``Gone``.
    """

    def __init__(self, handoff: uuid.UUID, overlap: bool) -> None:
        self.handoff = handoff
        self.overlap = overlap
        self.state = "Starting"
        self.connected = True
        self.asked = False
        self.done = False
        self.drained = False
        #: What to do when the seal code, or the resume code, has returned.
        self.resume = False
        self.leave = False
        self._lease_ms = 0

    @property
    def works(self) -> bool:
        """Whether the supervisor waits for it, so that it must send signs of life."""
        at_work = ("Starting", "Locking", "Opening", "Sealing", "Waiting", "Reopening")
        return self.state in at_work or (self.state == "Draining" and not self.drained)

    @property
    def stage(self) -> m.Stage:
        """Its stage for a new supervisor."""
        if self.state in ("Dismissed", "Leaving") or (self.leave and self.state in ("Sealing", "Reopening")):
            return m.Stage.LEAVING
        if self.state in ("Ready", "Serving"):
            return m.Stage.SERVING
        return m.Stage.WAITING if self.state in ("Locking", "Waiting") else m.Stage.WORKING

    def message(self, handoff: uuid.UUID, message: m.Message) -> Actions:
        """Processes a message."""
        state = self.state
        if state == "Gone":
            return []
        # The only message that begins another handoff.
        if isinstance(message, m.Prepare) and state == "Serving":
            self.handoff, self.state, self.drained = handoff, "Draining", False
            return [ArmLease(message.lease_ms), Drain(message.grace_ms)]
        if handoff != self.handoff:
            return self._breach()
        # `Grant` is for a process that runs another program.
        if state == "Dismissed" or isinstance(message, m.Grant):
            return []
        if state in UNCOMMITTED:
            return self._message_before_commit(message)
        return self._message_after_commit(message)

    def _message_before_commit(self, message: m.Message) -> Actions:
        state = self.state
        if isinstance(message, m.Abort):
            if state != "Ready":
                return self._exit(0)
            self.state = "Dismissed"
            return [ArmLease(LEAVE_GRACE_MS), Drain(LEAVE_GRACE_MS, refused=True), RunSeal(True)]
        if isinstance(message, m.Prepare) and state == "Starting" and not self.asked:
            self.asked = True
            return [ArmLease(message.lease_ms), *self._park()]
        if isinstance(message, m.TakeOver) and state == "Parked" and not self.overlap:
            return [KeepState(message)]
        if isinstance(message, m.Begin) and state == "Parked":
            self.state = "Opening" if self.overlap else "Locking"
            return [Do.DISARM_LEASE, Do.OPEN if self.overlap else Do.TAKE_LOCK]
        if isinstance(message, m.Commit) and state == "Ready":
            self.state = "Serving"
            return []
        return self._breach()

    def _message_after_commit(self, message: m.Message) -> Actions:
        state = self.state
        if isinstance(message, m.Seal) and state not in ("Sealing", "Sealed", "Leaving"):
            return self._seal(message) if state == "Draining" else []
        if isinstance(message, m.Resume):
            return self._take_back()
        if isinstance(message, (m.Commit, m.Abort)):
            return self._depart()
        # The predecessor drains while this process already serves.
        if isinstance(message, m.TakeOver) and state == "Serving" and self.overlap:
            return [TakeOver(message)]
        return self._breach()

    def hand_over(self, message: m.HandOver) -> Actions:
        """Hands state over; only while a successor waits for it."""
        is_waited_for = self.state == "Draining" or (self.state == "Sealing" and not (self.resume or self.leave))
        return self._say(message) if is_waited_for else []

    def adopt(self, handoff: uuid.UUID) -> Actions:
        """A new supervisor has connected on its own channel; the old channel is closed."""
        if self.state == "Gone":
            return []
        self.handoff = handoff
        self.connected = True
        return [AnswerAdopt(self.stage)]

    def happen(self, event: Event, reason: str = "") -> Actions:
        """Processes another event; ``reason`` is why it failed."""
        if event is Event.CLOSED:
            return self._closed()
        if event is Event.LEASE:
            return self._lease_ends()
        if self.state in UNCOMMITTED:
            return self._happen_before_commit(event, reason)
        return self._happen_after_commit(event, reason)

    def _happen_before_commit(self, event: Event, reason: str) -> Actions:
        state = self.state
        if event is Event.STARTED and state == "Starting":
            self.done = True
            return self._park()
        if event is Event.LOCKED and state == "Locking":
            self.state = "Opening"
            return [Do.OPEN]
        if event is Event.OPENED and state == "Opening":
            # Without a supervisor to send `Commit`, the serving process is the incumbent.
            self.state = "Ready" if self.connected else "Serving"
            return self._say(m.Ready(True))
        if event is Event.NOT_LOCKED and state == "Locking":
            return self._happen_before_commit(Event.NOT_OPENED, reason)
        if event is Event.NOT_OPENED and state in ("Starting", "Parked", "Locking", "Opening"):
            return [*self._say(m.Ready(False, reason)), *self._exit(1)]
        if event in (Event.SEAL_DONE, Event.SEAL_FAILED) and state == "Dismissed":
            return self._exit(0)
        return []

    def _happen_after_commit(self, event: Event, reason: str) -> Actions:
        state = self.state
        draining = state == "Draining" and not self.drained
        if event is Event.DRAIN_DONE and draining:
            self.drained = True
            return self._say(m.Drained())
        if event is Event.DRAIN_FAILED and draining:
            self.state = "Failed"
            return self._say(m.SealFailed(reason))
        if event in (Event.SEAL_DONE, Event.SEAL_FAILED) and state in ("Sealing", "Leaving"):
            return self._seal_returned(event is Event.SEAL_DONE, reason)
        if event is Event.LOCKED and state == "Waiting":
            return self._serve()
        if event is Event.NOT_LOCKED and state == "Waiting":
            return self._exit(1)
        if event is Event.RESUME_DONE and state == "Reopening":
            self.state = "Serving"
            return [*self._say(m.Resumed()), *(self._depart() if self.leave else [])]
        if event is Event.RESUME_FAILED and state == "Reopening":
            return [*self._say(m.ResumeFailed(reason)), *self._exit(1)]
        return []

    def _closed(self) -> Actions:
        if self.state == "Gone":
            return []
        self.connected = False
        if self.state in ("Starting", "Parked"):
            return self._exit(0)
        if self.state == "Ready":
            self.state = "Serving"
        return self._take_back()

    def _lease_ends(self) -> Actions:
        if self.state in ("Starting", "Parked"):
            return self._exit(0)
        if self.state in ("Dismissed", "Leaving"):
            return [Do.CANCEL_DRAIN]
        return self._take_back() if self.state in ("Draining", "Sealed", "Failed") else []

    def _park(self) -> Actions:
        if not (self.asked and self.done):
            return []
        self.state = "Parked"
        return self._say(m.Prepared())

    def _seal(self, message: m.Seal) -> Actions:
        cancel: Actions = [] if self.drained else [Do.CANCEL_DRAIN]
        self.state, self.resume, self.leave = "Sealing", False, False
        self._lease_ms = message.lease_ms
        return [*cancel, Do.DISARM_LEASE, RunSeal(message.cut)]

    def _seal_returned(self, good: bool, reason: str) -> Actions:
        if self.state == "Leaving" or self.leave:
            return self._exit(0)
        if self.resume:
            return self._serve()
        if not good:
            self.state = "Failed"
            return [ArmLease(self._lease_ms), *self._say(m.SealFailed(reason))]
        self.state = "Sealed"
        release: Actions = [] if self.overlap else [Do.RELEASE_LOCK]
        return [ArmLease(self._lease_ms), *release, *self._say(m.Sealed())]

    def _take_back(self) -> Actions:
        """Serves again with everything that was taken from it."""
        if self.state in ("Draining", "Failed"):
            return self._serve()
        if self.state == "Sealing":
            self.resume = True
        if self.state != "Sealed":
            return []
        if self.overlap:
            return self._serve()
        self.state = "Waiting"
        return [Do.DISARM_LEASE, Do.TAKE_LOCK]

    def _serve(self) -> Actions:
        cancel: Actions = [Do.CANCEL_DRAIN] if self.state == "Draining" and not self.drained else []
        self.state, self.leave = "Reopening", False
        return [*cancel, Do.DISARM_LEASE, Do.RESUME]

    def _depart(self) -> Actions:
        if self.state in ("Sealed", "Waiting"):
            return self._exit(0)
        if self.state in ("Sealing", "Reopening"):
            self.leave = True
        if self.state not in ("Serving", "Draining", "Failed"):
            return []
        self.state = "Leaving"
        return [ArmLease(LEAVE_GRACE_MS), Drain(LEAVE_GRACE_MS), RunSeal(True)]

    def _say(self, message: m.Message) -> Actions:
        return [Send(message)] if self.connected else []

    def _breach(self) -> Actions:
        return [Do.HANG_UP, *self._closed()]

    def _exit(self, code: int) -> Actions:
        self.state = "Gone"
        return [Exit(code)]


def describe(process: Process) -> str:
    """Formats a state like the tables."""
    word = {True: "true", False: "false"}
    flags = {
        "Starting": f"asked: {word[process.asked]}, done: {word[process.done]}",
        "Draining": f"drained: {word[process.drained]}",
        "Sealing": f"resume: {word[process.resume]}, leave: {word[process.leave]}",
        "Reopening": f"leave: {word[process.leave]}",
    }.get(process.state)
    state = process.state + (f" {{ {flags} }}" if flags else "")
    return f"{state}, connected {word[process.connected]}"
