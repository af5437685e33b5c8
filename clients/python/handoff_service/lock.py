"""The lock of a data directory: whoever holds it is the only one who writes."""

from __future__ import annotations

import fcntl
import os

from .errors import LockError

NAME = ".handoff.lock"


class DataLock:
    """The lock of one directory."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, NAME)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LockError(f"the lock file {path} cannot be opened ({error.strerror}); is it the data directory?") from error

    def take(self) -> None:
        """Waits for it without a limit."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        """Gives it to the next one, also if a child has a copy of the descriptor."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
