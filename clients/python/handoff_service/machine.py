"""The two machines of a service: what it does on each message and event. No clock, no descriptor, no thread."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import Enum
from typing import List, Optional, Union

from . import message as m

#: For so long the drain code of a process that leaves may run.
LEAVE_GRACE_MS = 30_000


class Event(Enum):
    """What happens besides messages. The values are the words of the tables."""

    CLOSED = "closed"
    LEASE = "lease"
    STARTED = "started"
    LOCKED = "locked"
    OPENED = "opened"
    NOT_OPENED = "not opened"
    DRAIN_DONE = "drain done"
    DRAIN_FAILED = "drain failed"
    SEAL_DONE = "seal done"
    SEAL_FAILED = "seal failed"
    RESUME_DONE = "resume done"
    RESUME_FAILED = "resume failed"


class Do(Enum):
    """What is to be done, if nothing more has to be said about it."""

    HANG_UP = "HangUp"
    DISARM_LEASE = "DisarmLease"
    TAKE_LOCK = "TakeLock"
    RELEASE_LOCK = "ReleaseLock"
    OPEN = "Open"
    CANCEL_DRAIN = "CancelDrain"
    RESUME = "Resume"
    BECOME_INCUMBENT = "BecomeIncumbent"


@dataclass(frozen=True)
class Send:
    """Send a message with the present id."""

    message: m.Message


@dataclass(frozen=True)
class KeepState:
    """Keep what the process that goes before has handed over, instead of what is kept already."""

    message: m.TakeOver


@dataclass(frozen=True)
class TakeOver:
    """Give the service what the process that went before has handed over."""

    message: m.TakeOver


@dataclass(frozen=True)
class AnswerAdopt:
    """Send ``Adopted``."""

    stage: m.Stage


@dataclass(frozen=True)
class ArmLease:
    """The lease ends after so long."""

    ms: int


@dataclass(frozen=True)
class Drain:
    """Run the drain code of the service, unless it runs already."""

    grace_ms: int


@dataclass(frozen=True)
class RunSeal:
    """Run the seal code of the service, when its drain code has returned."""

    cut: bool


@dataclass(frozen=True)
class Leave:
    """Run the drain code, which may take so long, then the seal code."""

    grace_ms: int


@dataclass(frozen=True)
class Exit:
    """End the process."""

    code: int


Action = Union[Do, Send, KeepState, TakeOver, AnswerAdopt, ArmLease, Drain, RunSeal, Leave, Exit]
Actions = List[Action]


class Machine:
    """What both have in common."""

    def __init__(self, handoff: uuid.UUID, overlap: bool, state: str, connected: bool = True) -> None:
        self.handoff = handoff
        self.overlap = overlap
        self.state = state
        self.connected = connected

    @property
    def works(self) -> bool:
        """Whether the supervisor waits for it, so that it must give signs of life."""
        raise NotImplementedError

    @property
    def stage(self) -> m.Stage:
        """What another supervisor is told."""
        raise NotImplementedError

    def message(self, handoff: uuid.UUID, message: m.Message) -> Actions:
        """A message came."""
        raise NotImplementedError

    def happen(self, event: Event, reason: str = "") -> Actions:
        """Something else happened; ``reason`` is why it failed."""
        raise NotImplementedError

    def hand_over(self, message: m.HandOver) -> Actions:
        """The service hands something over: only while a process that follows waits for it."""
        return []

    def adopt(self, handoff: uuid.UUID) -> Actions:
        """Another supervisor has come, on a channel of its own; the one before is closed."""
        if self.state == "Gone":
            return []
        self.handoff = handoff
        self.connected = True
        return [AnswerAdopt(self.stage)]

    def _say(self, message: m.Message) -> Actions:
        return [Send(message)] if self.connected else []

    def _breach(self) -> Actions:
        return [Do.HANG_UP, *self.happen(Event.CLOSED)]

    def _exit(self, code: int) -> Actions:
        self.state = "Gone"
        return [Exit(code)]


class Successor(Machine):
    """A process from its start until it is the incumbent."""

    def __init__(self, handoff: uuid.UUID, overlap: bool) -> None:
        super().__init__(handoff, overlap, "Starting")
        self.asked = False
        self.done = False

    @property
    def works(self) -> bool:
        return self.state in ("Starting", "Locking", "Opening")

    @property
    def stage(self) -> m.Stage:
        stages = {"Locking": m.Stage.WAITING, "Serving": m.Stage.SERVING, "Leaving": m.Stage.LEAVING}
        return stages.get(self.state, m.Stage.WORKING)

    def message(self, handoff: uuid.UUID, message: m.Message) -> Actions:
        state = self.state
        if state in ("Gone", "Incumbent"):
            return []
        if handoff != self.handoff:
            return self._breach()
        if state == "Leaving":
            return []
        if isinstance(message, m.Abort):
            if state != "Serving":
                return self._exit(0)
            self.state = "Leaving"
            return [Leave(LEAVE_GRACE_MS)]
        if isinstance(message, m.Prepare) and state == "Starting" and not self.asked:
            self.asked = True
            return [ArmLease(message.lease_ms), *self._park()]
        if isinstance(message, m.TakeOver) and state == "Parked" and not self.overlap:
            return [KeepState(message)]
        if isinstance(message, m.Begin) and state == "Parked":
            self.state = "Opening" if self.overlap else "Locking"
            return [Do.DISARM_LEASE, Do.OPEN if self.overlap else Do.TAKE_LOCK]
        if isinstance(message, m.Commit) and state == "Serving":
            return self._become_incumbent()
        return self._breach()

    def happen(self, event: Event, reason: str = "") -> Actions:
        state = self.state
        if event is Event.CLOSED and state not in ("Gone", "Incumbent"):
            self.connected = False
            if state in ("Starting", "Parked"):
                return self._exit(0)
            return self._become_incumbent() if state == "Serving" else []
        if event is Event.LEASE and state in ("Starting", "Parked"):
            return self._exit(0)
        if event is Event.STARTED and state == "Starting":
            self.done = True
            return self._park()
        if event is Event.LOCKED and state == "Locking":
            self.state = "Opening"
            return [Do.OPEN]
        if event is Event.OPENED and state == "Opening":
            if not self.connected:
                return self._become_incumbent()
            self.state = "Serving"
            return self._say(m.Ready(True))
        if event is Event.NOT_OPENED and state in ("Starting", "Parked", "Locking", "Opening"):
            return [*self._say(m.Ready(False, reason)), *self._exit(1)]
        if event in (Event.SEAL_DONE, Event.SEAL_FAILED) and state == "Leaving":
            return self._exit(0)
        return []

    def _park(self) -> Actions:
        if not (self.asked and self.done):
            return []
        self.state = "Parked"
        return self._say(m.Prepared())

    def _become_incumbent(self) -> Actions:
        self.state = "Incumbent"
        return [Do.BECOME_INCUMBENT]


class Incumbent(Machine):
    """A process that serves, until it leaves."""

    def __init__(self, handoff: uuid.UUID, overlap: bool, connected: bool) -> None:
        super().__init__(handoff, overlap, "Serving", connected)
        self.drained = False
        #: What is to be done when the seal code, or the resume code, has returned.
        self.resume = False
        self.leave = False
        self._lease_ms = 0

    @property
    def works(self) -> bool:
        return self.state in ("Sealing", "Waiting", "Reopening") or (self.state == "Draining" and not self.drained)

    @property
    def stage(self) -> m.Stage:
        if self.state == "Leaving" or (self.leave and self.state in ("Sealing", "Reopening")):
            return m.Stage.LEAVING
        return {"Serving": m.Stage.SERVING, "Waiting": m.Stage.WAITING}.get(self.state, m.Stage.WORKING)

    def message(self, handoff: uuid.UUID, message: m.Message) -> Actions:
        state = self.state
        if state == "Gone":
            return []
        if isinstance(message, m.Prepare) and state == "Serving":
            self.handoff, self.state, self.drained = handoff, "Draining", False
            return [ArmLease(message.lease_ms), Drain(message.grace_ms)]
        if handoff != self.handoff:
            return self._breach()
        if isinstance(message, m.Seal) and state not in ("Sealing", "Sealed", "Leaving"):
            return self._seal(message) if state == "Draining" else []
        if isinstance(message, m.Resume):
            return self._take_back()
        if isinstance(message, (m.Commit, m.Abort)):
            return self._depart()
        # The process that went before drains while this one serves already.
        if isinstance(message, m.TakeOver) and state == "Serving" and self.overlap:
            return [TakeOver(message)]
        return self._breach()

    def hand_over(self, message: m.HandOver) -> Actions:
        is_waited_for = self.state == "Draining" or (self.state == "Sealing" and not (self.resume or self.leave))
        return self._say(message) if is_waited_for else []

    def happen(self, event: Event, reason: str = "") -> Actions:
        state = self.state
        if event is Event.CLOSED and state != "Gone":
            self.connected = False
            return self._take_back()
        if event is Event.LEASE:
            if state == "Leaving":
                return [Do.CANCEL_DRAIN]
            return self._take_back() if state in ("Draining", "Sealed", "Failed") else []
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
        if event is Event.RESUME_DONE and state == "Reopening":
            self.state = "Serving"
            return [*self._say(m.Resumed()), *(self._depart() if self.leave else [])]
        if event is Event.RESUME_FAILED and state == "Reopening":
            return [*self._say(m.ResumeFailed(reason)), *self._exit(1)]
        return []

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
        """Serves again with whatever was taken from it."""
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


def describe(machine: Machine) -> str:
    """A state in the form of the tables."""
    flags: Optional[str] = None
    word = {True: "true", False: "false"}
    if isinstance(machine, Successor) and machine.state == "Starting":
        flags = f"asked: {word[machine.asked]}, done: {word[machine.done]}"
    if isinstance(machine, Incumbent):
        flags = {
            "Draining": f"drained: {word[machine.drained]}",
            "Sealing": f"resume: {word[machine.resume]}, leave: {word[machine.leave]}",
            "Reopening": f"leave: {word[machine.leave]}",
        }.get(machine.state)
    state = machine.state + (f" {{ {flags} }}" if flags else "")
    return f"{state}, connected {word[machine.connected]}"
