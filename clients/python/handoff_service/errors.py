"""The errors of this package. Each names the object, the cause, and the remedy."""

from __future__ import annotations


class HandoffError(Exception):
    """The base of all errors of this package."""


class FrameError(HandoffError):
    """An invalid frame. ``name`` is one from the protocol's table of errors."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        self.name = name


class InheritError(HandoffError):
    """The channel named in the environment is unusable."""


class LockError(HandoffError):
    """Locking the data failed."""


class StateError(HandoffError):
    """A handed-over state is too long, or differs from its announcement."""
