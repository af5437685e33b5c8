"""What can be wrong. Each error names the thing, the cause, and what to do."""

from __future__ import annotations


class HandoffError(Exception):
    """The base of all errors of this package."""


class FrameError(HandoffError):
    """What came is not a message. ``name`` is one of those in the table of errors of the protocol."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class InheritError(HandoffError):
    """The channel that the supervisor is said to have given cannot be used."""


class LockError(HandoffError):
    """The data lock cannot be taken."""


class StateError(HandoffError):
    """What is handed over is too long, or is not what was announced."""
