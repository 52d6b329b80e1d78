"""One line that a person can read, in place of a trainer's dictionaries."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Optional

from transformers import PrinterCallback, ProgressCallback, TrainerCallback


class ProgressLine(TrainerCallback):
    """
    Says how a training stands: step, bias, KL, neurons, time left. On a terminal the line is written over.

    Args:
        say (`Callable[[str], None]`): gets a line, where there is no terminal.
        every (`int`): steps between two such lines.
    """

    def __init__(self, say: Callable[[str], None], every: int = 10) -> None:
        self.say = say
        self.every = every
        self.begun = 0.0
        self.said: Optional[int] = None  # step of the last line
        self.open = False  # whether the terminal's line is

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun, self.said = time.monotonic(), None

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.open:
            sys.stdout.write("\n")
            self.open = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "per_occupation_bias" not in (logs or {}):
            return
        line = self.line(state.global_step, state.max_steps, {k: v for k, v in logs.items() if v is not None})
        if sys.stdout.isatty():
            sys.stdout.write(f"\r{line:<100}")
            sys.stdout.flush()
            self.open = True
        elif (
            self.said is None
            or state.global_step - self.said >= self.every
            or self.said < state.max_steps <= state.global_step
        ):
            self.say(line)
            self.said = state.global_step

    def line(self, step: int, steps: int, logs: dict[str, float]) -> str:
        """The line for one step's metrics."""
        left = (time.monotonic() - self.begun) / max(step, 1) * (steps - step)
        kl, least = logs.get("kl", logs.get("sampled_kl", float("nan"))), logs.get("least_kl", 0.0)
        parts = [
            f"step {step}/{steps}",
            f"bias {logs['per_occupation_bias']:.3f}",
            f"KL {kl:.3f}" + (f" ({kl / least:.1f} x the least)" if least > 0 else ""),
            f"neurons {1 - logs.get('zero_neurons', 0.0):.0%}",
            f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left",
        ]
        return "  ".join(parts)


def quiet_progress(trainer: Any, say: Callable[[str], None]) -> None:
    """Have a trainer say a line now and then, and nothing else."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressLine(say))
