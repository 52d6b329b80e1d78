"""Splits, so that what is measured was not seen in training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any


def split_questions(
    rows: Sequence[Mapping[str, Any]], by: str = "group", share: float = 0.25, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Divide questions so that no frame (or occupation) is on both sides.

    Args:
        rows (`Sequence[Mapping]`): questions.
        by (`str`, defaults to `"group"`): the column whose values are kept together: `"group"` for the sentence
            frames, `"occupation"`, or `"pair"`. A question that names a held-out occupation as an answer is held out
            as well.
        share (`float`, defaults to 0.25): share of the values to hold out, in (0, 1).
        seed (`int`, defaults to 0): of the draw.

    Returns:
        The questions to train on and the held-out ones, in their order.

    Raises:
        ValueError: a row lacks the column, the share is out of range, or a side would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share!r}: give a share between 0 and 1.")
    for number, row in enumerate(rows):
        if row.get(by) is None:
            raise ValueError(f"Question {number} has no {by!r} to split by; it has {', '.join(sorted(row))}.")
    values = sorted({str(row[by]) for row in rows})
    held = set(random.Random(seed).sample(values, round(share * len(values))))

    def is_held(row: Mapping[str, Any]) -> bool:
        named = {answer.strip() for answer in row.get("answers", ())} if by == "occupation" else set()
        return str(row[by]) in held or bool(named & held)

    train = [dict(row) for row in rows if not is_held(row)]
    test = [dict(row) for row in rows if is_held(row)]
    if not train or not test:
        raise ValueError(
            f"A split by {by!r} with share={share!r} leaves a side empty: there are {len(values)} values of it."
        )
    return train, test
