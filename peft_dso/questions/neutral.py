"""Neutral text: what a model should go on saying as before, whatever it learns about people."""

from __future__ import annotations

from importlib import resources
from typing import Optional

from .files import StrPath, read_lines
from .splits import check_split


# Of five texts, three are to train on, one validates and one is for the test: every kind of text is in each part.
_PART_OF = ("train", "train", "train", "validation", "test")


def read_texts(path: StrPath) -> list[str]:
    """
    Texts from a file of one's own.

    Args:
        path (`str`): a UTF-8 file (or `hf://datasets/...`). With empty lines between its texts, a text is a
            paragraph and keeps its line ends; without any, a text is a line.

    Returns:
        `list[str]`: the texts, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no text, or bytes that are no text.
    """
    paragraphs: list[list[str]] = []
    previous = 0
    for number, line in read_lines(path):
        if "\0" in line:
            raise ValueError(f"{path}, line {number}: a null byte; neutral texts are plain text.")
        # The lines of the first paragraph, with whatever stands before it; empty lines are not handed out.
        if not paragraphs or number > previous + 1:
            paragraphs.append([])
        paragraphs[-1].append(line)
        previous = number
    if not paragraphs:
        raise ValueError(f"{path}, line 1: there is no text; write one per line, or paragraphs.")
    if len(paragraphs) == 1:
        return [line.strip() for line in paragraphs[0]]
    return ["\n".join(lines).strip() for lines in paragraphs]


def neutral_texts(split: str = "train", path: Optional[StrPath] = None) -> list[str]:
    """
    Short texts that are about no group of people.

    Those of the package are everyday, factual and technical sentences, snippets of dialogue, lines of code and
    sentences in other languages.

    Args:
        split (`str`, defaults to `"train"`): `"train"` (three of five texts), `"validation"` or `"test"` (one of five
            each), always the same ones.
        path (`str`, *optional*): a file of one's own, see [`read_texts`]; it is split by the same rule.

    Returns:
        `list[str]`: the texts.

    Raises:
        ValueError: the split is unknown, or the file cannot be read or is too short to be split.
    """
    check_split(split)
    if path is None:
        texts = resources.files(__package__).joinpath("neutral.txt").read_text(encoding="utf-8").split("\n")
        texts = [text for text in texts if text]
    else:
        texts = read_texts(path)
        if len(texts) < len(_PART_OF):
            raise ValueError(
                f"{path} holds {len(texts)} texts: give at least {len(_PART_OF)}, one per line or paragraph, so that "
                "each of train, validation and test has some."
            )
    return [text for number, text in enumerate(texts) if _PART_OF[number % len(_PART_OF)] == split]
