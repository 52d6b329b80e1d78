"""
The columns of a question, and their check.

| column | type | what it holds |
|---|---|---|
| `prompt` | `str` or list of messages | what the model reads before it answers |
| `image` / `images` | image or list of images, optional | pictures of the prompt, a list of messages then |
| `occupation` | `str` | whom the question is about |
| `answers` | list of `str` | the possible answers, as they follow the prompt, the leading space included |
| `meanings` | list of `str` | the group of each answer: `"pro"` and `"anti"`, or the names of more groups |
| `right` | `int` or `None` | index of the one right answer; `None` where all are equally right (ambiguous) |
| `first` | `int` or `None`, optional | index of the answer that is named or listed first (position preference) |
| `pair` | `str`, optional | questions that belong together (bootstrap draws them together) |
| `group` | `str`, optional | what a split holds out as a whole, such as the sentence frame |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Optional


REQUIRED = ("prompt", "occupation", "answers", "meanings")


def _problem(row: Mapping[str, Any], groups: Optional[tuple[str, ...]]) -> Optional[str]:
    """What is wrong with one row, or `None`."""
    for column in REQUIRED:
        if column not in row:
            return f"the column {column!r} is missing; it has {', '.join(sorted(row))}"
    prompt, answers, meanings, right = row["prompt"], row["answers"], row["meanings"], row.get("right")
    if not prompt or not isinstance(prompt, (str, list)):
        return f"prompt must be text or a list of messages, got {prompt!r}"
    if not isinstance(row["occupation"], str) or not row["occupation"]:
        return f"occupation must be a name, got {row['occupation']!r}"
    if (
        not isinstance(answers, (list, tuple))
        or len(answers) < 2
        or not all(isinstance(a, str) and a.strip() for a in answers)
    ):
        return f"answers must be at least two texts, got {answers!r}"
    if len({a.strip() for a in answers}) < len(answers):
        return f"two of the answers are the same: {list(answers)!r}"
    if not isinstance(meanings, (list, tuple)) or len(meanings) != len(answers):
        return f"meanings must name the group of each of the {len(answers)} answers, got {meanings!r}"
    unknown = set(meanings) - set(groups) if groups else set()
    if unknown:
        return f"the meaning {sorted(map(str, unknown))[0]!r} is none of the groups {', '.join(groups or ())}"
    if right is not None and (isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(answers)):
        return f"right must be None or the index of an answer, got {right!r}"
    first = row.get("first")
    if first is not None and (isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < len(answers)):
        return f"first must be None or the index of an answer, got {first!r}"
    return _picture_problem(row)


def _picture_problem(row: Mapping[str, Any]) -> Optional[str]:
    images = row.get("images")
    if images is None:
        images = [row["image"]] if row.get("image") is not None else []
    elif row.get("image") is not None:
        return "it has both image and images; keep one of the columns"
    if not isinstance(images, (list, tuple)):
        return f"images must be a list, got {type(images).__name__}"
    if any(image is None for image in images):
        return f"picture {[image is None for image in images].index(True)} is missing"
    if images and isinstance(row["prompt"], str):
        return f"a prompt with pictures must be a list of messages, got {row['prompt']!r}"
    return None


def check_questions(rows: Iterable[Mapping[str, Any]], groups: Optional[tuple[str, ...]] = None) -> None:
    """
    Check the columns of every row.

    Args:
        rows (`Iterable[Mapping]`): questions, such as a `datasets.Dataset` or a list of dictionaries.
        groups (`tuple[str, ...]`, *optional*): the meanings that are allowed; default any.

    Raises:
        ValueError: there is no row, or a row is wrong: the message names the first one and what to change.
    """
    number = -1
    for number, row in enumerate(rows):
        problem = _problem(row, groups)
        if problem:
            raise ValueError(f"Question {number}: {problem}.")
    if number < 0:
        raise ValueError("There is no question.")
