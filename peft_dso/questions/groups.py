"""The groups that answers mean, in one order everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def question_groups(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """
    The groups that the answers of some questions mean.

    Args:
        rows (`Iterable[Mapping]`): questions.

    Returns:
        `tuple[str, ...]`: pro and anti first, both of them where there is no other group; then the others in
        alphabetical order.
    """
    found = {meaning for row in rows for meaning in row["meanings"]}
    if found <= {"pro", "anti"}:
        return ("pro", "anti")
    return tuple(sorted(found, key=lambda group: (group not in ("pro", "anti"), group != "pro", group)))


def trainable_groups(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """
    [`question_groups`] of questions to train on, each of whose occupations must be able to show two groups.

    Args:
        rows (`Iterable[Mapping]`): questions.

    Returns:
        `tuple[str, ...]`: the groups.

    Raises:
        ValueError: all answers about one occupation mean the same group.
    """
    by_occupation: dict[str, set[str]] = {}
    for row in rows:
        by_occupation.setdefault(row["occupation"], set()).update(row["meanings"])
    for name, meanings in by_occupation.items():
        if len(meanings) < 2:
            raise ValueError(
                f"All answers about {name!r} mean {meanings.pop()!r}: no answer could show the model to be fair."
            )
    return question_groups([{"meanings": meanings} for meanings in by_occupation.values()])
