"""The API for asyncio. A thread drives the protocol, so a busy loop still sends signs of life."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import traceback
from types import TracebackType
from typing import Any, Coroutine, Mapping, NoReturn, Optional, Type, Union

from . import service as blocking
from .driver import Handlers as BlockingHandlers
from .errors import HandoffError, LockError
from .lock import DataLock
from .machine import Event
from .state import State


class Handlers:
    """The callbacks of a service; see the blocking API. Each runs on the loop that called ``ready``."""

    async def drain(self, grace: float) -> None:
        """Keep accepting, and wait for long requests. To end it early, the library cancels it and waits until
        it has ended.
        """

    async def seal(self, cut: bool) -> None:
        """Stop accepting, without closing a listener; finish what was accepted; make everything durable."""

    async def resume(self) -> None:
        """Open the data again and accept."""

    async def take_over(self, state: State) -> None:
        """Process the state that the predecessor hands over, in overlap mode."""
        BlockingHandlers().take_over(state)


class _OnLoop(BlockingHandlers):
    def __init__(self, handlers: Handlers, loop: asyncio.AbstractEventLoop) -> None:
        self._handlers = handlers
        self._loop = loop

    def drain(self, grace: float, cancelled: threading.Event) -> None:
        self._schedule(self._drain(grace, cancelled)).result()

    async def _drain(self, grace: float, cancelled: threading.Event) -> None:
        """Completes when the service's code has ended, cancelled or not: the seal comes after it."""
        task = asyncio.current_task()
        assert task is not None

        def watch() -> None:
            cancelled.wait()
            try:
                self._loop.call_soon_threadsafe(task.cancel)
            except RuntimeError:
                pass  # The loop is closed.

        threading.Thread(target=watch, name="handoff-drain", daemon=True).start()
        try:
            await self._handlers.drain(grace)
        except asyncio.CancelledError:
            if not cancelled.is_set():
                raise

    def seal(self, cut: bool) -> None:
        self._schedule(self._handlers.seal(cut)).result()

    def resume(self) -> None:
        self._schedule(self._handlers.resume()).result()

    def take_over(self, state: State) -> None:
        self._schedule(self._handlers.take_over(state)).result()

    def _schedule(self, code: Coroutine[Any, Any, None]) -> "concurrent.futures.Future[None]":
        return asyncio.run_coroutine_threadsafe(_guarded(code), self._loop)


async def _guarded(code: Coroutine[Any, Any, None]) -> None:
    """Converts errors that would end the loop before the failure is reported."""
    try:
        await code
    except (SystemExit, KeyboardInterrupt) as error:
        raise HandoffError(f"{type(error).__name__}: {error}") from error


class Service(blocking.Service):
    """One process of a service. Created by ``start``."""

    async def begin(  # type: ignore[override]
        self, data: Union[str, "os.PathLike[str]", None] = None
    ) -> Optional[State]:
        """See the blocking API."""
        if self._driver is None:
            await asyncio.get_running_loop().run_in_executor(None, super().begin, data)
            return None
        directory = os.fspath(data) if data is not None else None
        if directory is not None:
            try:
                DataLock.check(directory)
            except LockError as error:
                await self.unhealthy(str(error))
        self._driver.data = directory
        self._driver.post(Event.STARTED)
        state: Optional[State] = await self._wait(self._driver.begun)
        return state

    async def ready(self, handlers: Optional[Handlers] = None) -> None:  # type: ignore[override]
        """See the blocking API."""
        super().ready(_OnLoop(handlers or Handlers(), asyncio.get_running_loop()))

    async def unhealthy(self, reason: str) -> NoReturn:  # type: ignore[override]
        """See the blocking API."""
        if self._driver is None:
            raise SystemExit(f"not healthy: {reason}")
        self._driver.post(Event.NOT_OPENED, reason)
        raise SystemExit(await self._wait(self._driver.finished))

    async def wait(self) -> int:  # type: ignore[override]
        """See the blocking API."""
        if self._driver is None:
            await asyncio.Event().wait()
            return 0
        return int(await self._wait(self._driver.finished))

    async def __aenter__(self) -> "Service":
        return self

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], at: Optional[TracebackType]
    ) -> None:
        """Reports an exception before ``ready`` to the supervisor."""
        if isinstance(error, Exception) and not self._is_ready and self._driver is not None:
            traceback.print_exception(kind, error, at)
            await self.unhealthy(f"{type(error).__name__}: {error}")

    async def _wait(self, future: "concurrent.futures.Future[Any]") -> Any:
        assert self._driver is not None
        self._driver.await_begins()
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def tell(finished: "concurrent.futures.Future[Any]") -> None:
            if not waiter.done():
                waiter.set_result(finished)

        def done(finished: "concurrent.futures.Future[Any]") -> None:
            waiter.get_loop().call_soon_threadsafe(tell, finished)

        future.add_done_callback(done)
        try:
            # Raised here, so that SystemExit ends the waiting task and not the loop.
            return (await waiter).result()
        finally:
            self._driver.await_ends()


async def start(
    bind: Optional[Mapping[str, blocking.Address]] = None,
    environ: Optional[Mapping[str, str]] = None,
    version: str = "",
) -> Service:
    """See the blocking API."""
    started = await asyncio.get_running_loop().run_in_executor(None, blocking.start, bind, environ, version)
    return Service(started.listeners, started._driver, started._welcome)
