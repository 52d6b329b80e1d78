"""What stands for a question, or for any other value, where two are to be told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from .prompts import row_images


def question_key(row: Mapping[str, Any]) -> str:
    """What makes a question the same as another: what the model reads, who it is about, and the answers."""
    return digest([row["prompt"], row_images(row), row["occupation"], sorted(row["answers"])])


def digest(value: Any) -> str:
    """Sixteen letters that stand for a value; pictures by what they show."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_shown).encode()).hexdigest()[:16]


def _shown(value: Any) -> Any:
    if hasattr(value, "tobytes"):
        return [str(getattr(value, "size", "")), hashlib.sha256(value.tobytes()).hexdigest()]
    return list(value) if isinstance(value, (tuple, set, frozenset)) else str(value)
