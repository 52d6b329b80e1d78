"""Which checkpoints are whole."""

from __future__ import annotations

import json
import os
from typing import Any

from transformers.trainer_utils import get_last_checkpoint


def is_complete(folder: str) -> bool:
    """Whether a checkpoint was written to its end: trainer_state.json, which is written last, can be read."""
    try:
        with open(os.path.join(folder, "trainer_state.json"), encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True


def last_complete_checkpoint(output_dir: str) -> str:
    """
    The newest whole checkpoint of a training.

    Args:
        output_dir (`str`): the trainer's folder.

    Returns:
        `str`: the checkpoint's folder.

    Raises:
        ValueError: there is none.
    """
    last = get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
    names = [name for name in (os.listdir(output_dir) if last else []) if name.startswith("checkpoint-")]
    for name in sorted(names, key=lambda n: -int(n.rpartition("-")[2]) if n.rpartition("-")[2].isdecimal() else 1):
        if is_complete(os.path.join(output_dir, name)):
            return os.path.join(output_dir, name)
    raise ValueError(f"There is no complete checkpoint in {output_dir!r} to resume from.")


def checkpoint_to_resume(wanted: Any, output_dir: str) -> Any:
    """
    Where a training goes on.

    Args:
        wanted (`str` or `bool`, *optional*): as in `Trainer.train`; `True`: the newest whole checkpoint.
        output_dir (`str`): the trainer's folder.

    Returns:
        `str` or what was given: the checkpoint's folder.

    Raises:
        ValueError: the checkpoint was not written to its end, or there is none.
    """
    if wanted is True:
        return last_complete_checkpoint(output_dir)
    if isinstance(wanted, str) and not is_complete(wanted):
        raise ValueError(
            f"{wanted} is not a complete checkpoint: trainer_state.json, which is written last, is missing or broken. "
            "Resume from an earlier one."
        )
    return wanted
