"""
The forms of an answer, and from free text to the answer that was given: whole words, never parts of words; several
answers or none abstain.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import regex


# Scripts that set no spaces between words: no boundary tells where a word of theirs ends.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_LETTER = rf"[^\W{_UNSPACED}]"
# There, a plural makes another word ("they"), and a combining mark another letter.
_PLURALS = "[们們]|ら|たち|達"
# Korean sets spaces, and hangs particles onto its words.
_PARTICLES = "은|는|이|가|을|를|의|도|만|과|와|에게|께서|한테|입니다|이다|이에요|예요|라고|이라고"


def _boundaries(words: str) -> tuple[str, str]:
    """What must not, or must, stand before and after an answer for it to be whole words."""
    before = "" if regex.match(f"[{_UNSPACED}]", words) else rf"(?<!{_LETTER})"
    if regex.search(f"[{_UNSPACED}]$", words):
        return before, rf"(?!{_PLURALS}|\p{{M}})"
    if regex.search(r"\p{Hangul}$", words):
        return before, rf"(?=(?:{_PARTICLES})?(?!{_LETTER}))"
    return before, rf"(?!{_LETTER})"


def _option(letter: str) -> str:
    """An option: "B", "(B)", "B.", "Answer: B", "B over A", but not the article of "A doctor is seen"."""
    option = rf"(?<!\w|\w')\(?{letter}(?!\w|'\w)"
    if letter not in ("A", "I"):
        return option
    # Those two are words: at the beginning of a sentence they are options where no word follows, or one of these.
    no_word = r"(?!\s+(?!(?:is|was|looks|seems|has|would|and|or|over)\b)\p{L})"
    return rf"(?:(?<=[\p{{L}}\p{{N}},;]\s){option}|{option}{no_word})" if letter == "A" else option + no_word


@functools.lru_cache(maxsize=4096)
def _pattern(answer: str) -> regex.Pattern[str]:
    text = answer.strip()
    if len(text) == 1 and text.isalpha() and text.isupper():
        return regex.compile(_option(text))
    before, after = _boundaries(text)
    words = r"\s+".join(regex.escape(word) for word in text.split())
    return regex.compile(f"{before}{words}{after}", regex.IGNORECASE)


def read_answer(text: str, answers: Sequence[Union[str, Sequence[str]]]) -> Optional[int]:
    """
    Which of the answers a text gives.

    An answer counts where it stands as whole words, upper or lower case; in a script that sets no spaces between words
    (Chinese, Japanese, Thai), wherever it stands. A single capital letter counts as an option, "A" only where it
    cannot be the article. Where one answer lies inside another ("driver" in "bus driver"), the longer one counts.

    Args:
        text (`str`): what the model wrote.
        answers (`Sequence[str]` or `Sequence[Sequence[str]]`): the possible answers, or the forms of each, as
            [`~peft_dso.questions.answer_forms`] gives them.

    Returns:
        `int` or `None`: index of the answer; `None` (the model abstains) if none or several are found.

    Raises:
        ValueError: an answer is empty.
    """
    forms = [[answer] if isinstance(answer, str) else answer for answer in answers]
    if not all(texts and all(form.strip() for form in texts) for texts in forms):
        raise ValueError(f"An answer is empty: {list(answers)!r}.")
    spans = [
        (match.start(), match.end(), index)
        for index, texts in enumerate(forms)
        for form in texts
        for match in _pattern(form).finditer(text)
    ]
    found = {
        index
        for start, end, index in spans
        if not any(s <= start and end <= e and (e - s) > (end - start) and i != index for s, e, i in spans)
    }
    return found.pop() if len(found) == 1 else None


def answer_forms(row: Mapping[str, Any]) -> list[list[str]]:
    """
    The texts in which a model gives each answer of a question.

    Args:
        row (`Mapping`): a question; its `forms` may be left out, or `None` as Arrow fills what a row lacks.

    Returns:
        `list[list[str]]`: one list per answer, the answer itself first; that alone where the row has no forms.
    """
    forms = row.get("forms")
    return [[answer] for answer in row["answers"]] if forms is None else [list(texts) for texts in forms]


def abstention_forms(row: Mapping[str, Any]) -> list[str]:
    """
    The named ways of not answering a question.

    Args:
        row (`Mapping`): a question; its `abstentions` may be left out, or `None` as Arrow fills what a row lacks.

    Returns:
        `list[str]`: the texts; empty where the row names none.
    """
    return list(row.get("abstentions") or ())


def read_row(text: str, row: Mapping[str, Any]) -> Optional[int]:
    """
    Which answer of a question a text gives, in any of its forms.

    Args:
        text (`str`): what the model wrote.
        row (`Mapping`): a question.

    Returns:
        `int` or `None`: index of the answer, or their number for a named way of not answering; see [`read_answer`].
    """
    named = abstention_forms(row)
    return read_answer(text, [*answer_forms(row), *([named] if named else [])])
