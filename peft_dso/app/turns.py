"""One model for several people: whoever needs it waits for a turn, and sets strengths of his own for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any

from ..tuner import get_steering_strength, set_steering_strength


Strengths = Mapping[str, Sequence[float]]  # by adapter, one per row


class Turns:
    """
    Turns at a steered model, in the order in which they are asked for. A turn begins by setting the strengths of its
    rows, so that no request ever runs at those of another.

    Args:
        model (`nn.Module`): a model with DSO adapters.
        adapters (`Sequence[str]`): their names; all are active.
    """

    def __init__(self, model: Any, adapters: Sequence[str]) -> None:
        self._model = model
        self._idle = {name: get_steering_strength(model, name) for name in adapters}
        self._guard = Lock()
        self._waiting: deque[Event] = deque()

    @contextmanager
    def take(self, strengths: Strengths) -> Iterator[None]:
        """A turn with some strengths; what the model had before anybody took a turn is put back after it."""
        self._begin()
        try:
            self._set(strengths)
            yield
        finally:
            try:
                self._set(self._idle)
            finally:
                self._end()

    def pass_on(self, strengths: Strengths) -> None:
        """Within a turn: let those who wait have theirs, and go on behind them with the strengths of before."""
        if len(self._waiting) > 1:
            self._end()
            self._begin()
            self._set(strengths)

    def _set(self, strengths: Mapping[str, Any]) -> None:
        for name, value in strengths.items():
            set_steering_strength(self._model, value, name)

    def _begin(self) -> None:
        turn = Event()
        with self._guard:
            self._waiting.append(turn)
            if self._waiting[0] is turn:
                turn.set()
        turn.wait()

    def _end(self) -> None:
        with self._guard:
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0].set()
