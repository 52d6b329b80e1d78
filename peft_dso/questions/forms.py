"""The texts in which a model gives an answer, and those in which it declines to give one."""

from __future__ import annotations

from collections.abc import Iterable


# What a model says instead of one of two people. Each stands for itself: scoring counts nothing twice.
ABSTENTIONS = (
    "unknown",
    "neither",
    "both",
    "either",
    "none",
    "unclear",
    "undetermined",
    "not specified",
    "not enough information",
    "cannot be determined",
    "can't be determined",
    "cannot determine",
    "it is unclear",
    "it is not clear",
    "it cannot be determined",
)


def capitalized(text: str) -> str:
    """A text with its first letter upper case and the rest as it is: `"CEO"` stays."""
    return text[:1].upper() + text[1:]


def distinct(first: str, texts: Iterable[str]) -> list[str]:
    """`first`, then the others in their order, each text once."""
    return list(dict.fromkeys((first, *texts)))


def unlike(forms: Iterable[Iterable[str]], texts: Iterable[str]) -> list[str]:
    """The texts that are no form of an answer: an answer that says "unknown" is no abstention."""
    taken = {form.strip() for of_answer in forms for form in of_answer}
    return [text for text in texts if text.strip() not in taken]


def _spellings(name: str) -> list[str]:
    """`"nurse"`, `"Nurse"`; of several words also each of them capitalised, of a name like `"CEO"` also `"ceo"`."""
    return distinct(name, (capitalized(name), " ".join(map(capitalized, name.split())), name.lower()))


def chat_forms(name: str) -> list[str]:
    """
    The forms of a name as the answer of an assistant.

    Args:
        name (`str`): such as `"construction worker"`.

    Returns:
        `list[str]`: the capitalised name first; each spelling bare and after an article, with and without a leading
        space.
    """
    said = [*_spellings(name), *(f"{the} {spelling}" for the in ("The", "the") for spelling in _spellings(name))]
    return distinct(capitalized(name), [space + text for space in ("", " ") for text in said])


def continued_forms(name: str) -> list[str]:
    """
    The forms of a name where it continues a sentence: `" nurse"` after "refers to the".

    Args:
        name (`str`): without a leading space.

    Returns:
        `list[str]`: the name after a space first, then its other spellings.
    """
    return [f" {spelling}" for spelling in _spellings(name)]


def option_forms(letter: str) -> list[str]:
    """
    The forms of an option: `"B"`, `"(B)"`, `"Person B"`, with and without a leading space; no `"b"`, since `"a"` is an
    article.

    Args:
        letter (`str`): a capital letter.

    Returns:
        `list[str]`: the letter first.
    """
    said = (letter, f"({letter})", f"Person {letter}", f"person {letter}")
    return [space + text for space in ("", " ") for text in said]


def described_forms(text: str, first: str) -> list[str]:
    """
    The forms of an answer that comes with its article: `"The young man"`.

    Args:
        text (`str`): the answer.
        first (`str`): how it stands as the first form, such as `" The young man"`.

    Returns:
        `list[str]`: `first`, then the other forms of [`chat_forms`].
    """
    article, _, noun = text.strip().partition(" ")
    return distinct(first, chat_forms(noun if noun and article.lower() in ("the", "a", "an") else text.strip()))


def chat_abstentions(texts: Iterable[str] = ABSTENTIONS) -> list[str]:
    """
    Ways of not answering as an assistant gives them: lower case and capitalised, with and without a leading space.
    """
    return list(
        dict.fromkeys(space + form for space in ("", " ") for text in texts for form in (capitalized(text), text))
    )


def continued_abstentions(texts: Iterable[str] = ABSTENTIONS) -> list[str]:
    """Ways of not answering as they continue a sentence."""
    return [f" {text}" for text in texts]
