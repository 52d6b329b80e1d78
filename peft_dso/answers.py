"""From free text to the answer that was given: whole words, never parts of words; several answers or none abstain."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Optional

import regex


@functools.lru_cache(maxsize=4096)
def _pattern(answer: str) -> regex.Pattern[str]:
    text = answer.strip()
    if len(text) == 1 and text.isalpha() and text.isupper():
        # An option: "B", "(B)", "B.", "Answer: B", "B is the doctor", but not the article of "A doctor is seen".
        follow = r"(?=\s*$|\s*[\n.,:;)\]*!]|\s+(?:is|was|looks|seems|has|would|and|or)\b)"
        return regex.compile(rf"(?<![\w'])\(?{text}{follow}")
    words = r"\s+".join(regex.escape(word) for word in text.split())
    return regex.compile(rf"(?<!\w){words}(?!\w)", regex.IGNORECASE)


def read_answer(text: str, answers: Sequence[str]) -> Optional[int]:
    """
    Which of the answers a text gives.

    An answer counts where it stands as whole words, upper or lower case; a single capital letter counts as an option
    only where it cannot be the article "A". Where one answer lies inside another ("driver" in "bus driver"), the
    longer one counts.

    Args:
        text (`str`): what the model wrote.
        answers (`Sequence[str]`): the possible answers.

    Returns:
        `int` or `None`: index of the answer; `None` (the model abstains) if none or several are found.

    Raises:
        ValueError: an answer is empty.
    """
    if not all(answer.strip() for answer in answers):
        raise ValueError(f"An answer is empty: {list(answers)!r}.")
    spans = [
        (match.start(), match.end(), index)
        for index, answer in enumerate(answers)
        for match in _pattern(answer).finditer(text)
    ]
    found = {
        index
        for start, end, index in spans
        if not any(s <= start and end <= e and (e - s) > (end - start) and i != index for s, e, i in spans)
    }
    return found.pop() if len(found) == 1 else None
