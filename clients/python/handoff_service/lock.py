"""The lock of a data directory: only its holder may write."""

from __future__ import annotations

import fcntl
import os

from .errors import LockError

NAME = ".handoff.lock"


class DataLock:
    """The held lock of one directory."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, NAME)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LockError(f"cannot open the lock file {path} ({error.strerror}); is it the data directory?") from error

    @classmethod
    def check(cls, directory: str) -> None:
        """Raises an error if the lock can neither be taken nor waited for. Takes nothing."""
        os.close(cls(directory)._fd)

    def take(self) -> None:
        """Takes the lock. Blocks without limit."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def release(self) -> None:
        """Releases the lock, even if a child has a copy of the descriptor."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
