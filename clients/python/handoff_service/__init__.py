"""For servers that ``handoff`` upgrades without a refused, reset or cut connection.

>>> service = start(bind={"main": ("127.0.0.1", 8000)})
>>> listener = service.listeners["main"]
>>> # … all start-up that needs no data …
>>> service.begin(data="/var/lib/it")
>>> # … open the data, begin to accept …
>>> service.ready(MyHandlers())
>>> raise SystemExit(service.wait())

For asyncio see ``handoff_service.aio``.
"""

from .driver import Handlers
from .errors import FrameError, HandoffError, InheritError, LockError, StateError
from .message import Mode
from .service import Service, start, without_variables
from .state import State

__all__ = [
    "FrameError", "Handlers", "HandoffError", "InheritError", "LockError", "Mode", "Service", "State", "StateError",
    "start", "without_variables",
]  # fmt: skip
