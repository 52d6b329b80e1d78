"""
The columns of a question, and their check.

| column | type | what it holds |
|---|---|---|
| `prompt` | `str` or list of messages | what the model reads before it answers |
| `image` / `images` | image or list of images, optional | pictures of the prompt, a list of messages then |
| `occupation` | `str` | whom the question is about |
| `answers` | list of `str` | the possible answers, as they follow the prompt, the leading space included |
| `meanings` | list of `str` | the group of each answer: `"pro"` and `"anti"`, or the names of more groups |
| `forms` | list of lists of `str`, optional | per answer the texts that give it; the first is the answer itself |
| `abstentions` | list of `str`, optional | named ways of not answering, such as `"unknown"` or `"neither"` |
| `right` | `int` or `None` | index of the one right answer; `None` where all are equally right (ambiguous) |
| `first` | `int` or `None`, optional | index of the answer that is named or listed first (position preference) |
| `pair` | `str`, optional | questions that belong together, such as two orders (bootstrap; training, with `first`) |
| `group` | `str`, optional | what a split holds out as a whole, such as the sentence frame |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any, Optional

from ..answers import abstention_forms, answer_forms


REQUIRED = ("prompt", "occupation", "answers", "meanings")
OPTIONAL = ("forms", "abstentions", "right", "first", "pair", "group", "image", "images")


def _problem(row: Mapping[str, Any], groups: Optional[tuple[str, ...]]) -> Optional[str]:
    """What is wrong with one row, or `None`."""
    for column in REQUIRED:
        if column not in row:
            return f"the column {column!r} is missing; it has {', '.join(sorted(row))}"
    for column in (*REQUIRED, *OPTIONAL):
        value = row.get(column)
        if isinstance(value, float) and value != value:
            return f"{column} is NaN, as pandas marks what is missing; set it to None or leave it out"
    return (
        _prompt_problem(row["prompt"])
        or _answer_problem(row, groups)
        or _form_problem(row)
        or index_problem(row)
        or _text_problem(row)
        or _picture_problem(row)
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _prompt_problem(prompt: Any) -> Optional[str]:
    if not prompt or not isinstance(prompt, (str, list)):
        return f"prompt must be text or a list of messages, got {prompt!r}"
    if isinstance(prompt, list):
        wrong = next((m for m in prompt if not isinstance(m, Mapping) or not isinstance(m.get("role"), str)), None)
        if wrong is not None:
            return f"a message of the prompt must be a dictionary with role and content, got {wrong!r}"
    return None


def _answer_problem(row: Mapping[str, Any], groups: Optional[tuple[str, ...]]) -> Optional[str]:
    answers, meanings = row["answers"], row["meanings"]
    if not isinstance(answers, (list, tuple)) or len(answers) < 2 or not all(map(_is_text, answers)):
        return f"answers must be at least two texts, got {answers!r}"
    if len({a.strip() for a in answers}) < len(answers):
        return f"two of the answers are the same: {list(answers)!r}"
    if not isinstance(meanings, (list, tuple)) or len(meanings) != len(answers):
        return f"meanings must name the group of each of the {len(answers)} answers, got {meanings!r}"
    if not all(map(_is_text, meanings)):
        return f"the meaning of an answer must be the name of a group, got {list(meanings)!r}"
    unknown = set(meanings) - set(groups) if groups else set()
    if unknown:
        return f"the meaning {sorted(unknown)[0]!r} is none of the groups {', '.join(groups or ())}"
    return None


def _form_problem(row: Mapping[str, Any]) -> Optional[str]:
    """Forms say each answer in other words, and no text says two things."""
    answers, forms, abstentions = row["answers"], row.get("forms"), row.get("abstentions")
    if forms is not None and (
        not isinstance(forms, (list, tuple))
        or len(forms) != len(answers)
        or not all(isinstance(texts, (list, tuple)) and texts and all(map(_is_text, texts)) for texts in forms)
    ):
        return (
            f"forms must be a list of texts, none of them empty, for each of the {len(answers)} answers, got {forms!r}"
        )
    if abstentions is not None and (not isinstance(abstentions, (list, tuple)) or not all(map(_is_text, abstentions))):
        return f"abstentions must be a list of texts, none of them empty, got {abstentions!r}"
    said: dict[str, str] = {}
    for answer, texts in zip(answers, answer_forms(row), strict=False):
        if texts[0] != answer:
            return f"the first form of the answer {answer!r} must be the answer itself, got {texts[0]!r}"
        for text in texts:
            if said.setdefault(text.strip(), answer) != answer:
                return f"the form {text!r} is one of {said[text.strip()]!r} and of {answer!r}; leave it out of one"
    for text in abstention_forms(row):
        if text.strip() in said:
            return f"the abstention {text!r} is also a form of the answer {said[text.strip()]!r}; leave it out of one"
    return None


def index_problem(row: Mapping[str, Any]) -> Optional[str]:
    """What is wrong with `right` or `first` of a row with answers; `None` where nothing is."""
    for column in ("right", "first"):
        value = row.get(column)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) < len(row["answers"]):
            return f"{column} must be None or the index of an answer, a whole number, got {value!r}"
    return None


def _text_problem(row: Mapping[str, Any]) -> Optional[str]:
    if not _is_text(row["occupation"]):
        return f"occupation must be a name, got {row['occupation']!r}"
    for column in ("pair", "group"):
        if row.get(column) is not None and not _is_text(row[column]):
            return f"{column} must be None or a text, got {row[column]!r}"
    return None


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
