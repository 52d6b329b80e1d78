"""Whose turn it is to borrow the strength of a model: it is one value, and a server has many threads."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Any, Optional


def _task() -> Any:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


class Turn:
    """
    A lock that whoever holds it may take again: a thread, or, in a thread with an event loop, one of its tasks. Other
    threads wait. Another task of the same thread cannot wait without stopping the one that it waits for, so that it
    is refused. A copy of the lock, pickled ones included, is a free lock.

    Raises:
        RuntimeError: on entering, another task of the same event loop holds it.
    """

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._owner: Optional[tuple[int, Any]] = None
        self._depth = 0

    def __enter__(self) -> None:
        me = (threading.get_ident(), _task())
        if self._owner != me:
            owner = self._owner
            if owner is not None and owner[0] == me[0]:
                raise RuntimeError(
                    "Another task of this event loop has borrowed the steering strength of the model, and its answer "
                    "would get this one. Run the model in threads, which wait for each other, or let the tasks share "
                    "an asyncio.Lock."
                )
            self._free.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._free.release()

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        return Turn, ()
