"""
Questions by name or from a file, as the command line takes them.

A new set is one function under its name:

    @question_set("riddles", "Who is meant by a riddle?")
    def _riddles(split, occupations, chat):
        return [...]  # rows

Its description is the help of the command line; nothing else is to be touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .files import read_rows
from .occupations import OCCUPATIONS, Occupation
from .schema import check_questions
from .splits import check_split, split_occupations


__all__ = ["QuestionSet", "describe_sets", "load_questions", "question_set", "read_rows"]

Build = Callable[[str, Sequence[Occupation], bool], list[dict[str, Any]]]


@dataclass(frozen=True)
class QuestionSet:
    """
    A set of questions that has a name.

    Args:
        name (`str`): as the command line takes it.
        description (`str`): one line.
        build (`Callable`): makes the rows, from the split (or, for a known set, its file), the occupations, and
            whether prompts are messages.
        from_file (`bool`): it is read from a file that the user names, `"NAME:FILE"`.
    """

    name: str
    description: str
    build: Build
    from_file: bool = False


_SETS: dict[str, QuestionSet] = {}


def question_set(name: str, description: str, *, from_file: bool = False) -> Callable[[Build], Build]:
    """
    Register a function as a set of questions.

    Args:
        name (`str`): of the set; without a colon.
        description (`str`): one line for help texts.
        from_file (`bool`, defaults to `False`): the function takes a path, and no split.

    Returns:
        The decorator; it leaves the function as it is.

    Raises:
        ValueError: the name is taken, or no name, or the description is no line.
    """
    if name in _SETS or not name or ":" in name or name.endswith((".json", ".jsonl")):
        raise ValueError(f"{name!r} cannot name a set of questions: it is taken, empty, or reads like a file.")
    if not description.strip() or "\n" in description:
        raise ValueError(f"The description of {name!r} must be one line, got {description!r}.")

    def register(build: Build) -> Build:
        _SETS[name] = QuestionSet(name, description, build, from_file)
        return build

    return register


def describe_sets() -> dict[str, str]:
    """
    The sets of questions that have a name.

    Returns:
        `dict[str, str]`: by what the command line takes, such as `"pronouns"` or `"winobias:FILE"`, one line each;
        sets of the package first.
    """
    ordered = sorted(_SETS.values(), key=lambda known: known.from_file)
    return {known.name + (":FILE" if known.from_file else ""): known.description for known in ordered}


def load_questions(
    source: str,
    split: str = "test",
    *,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    held_out_occupations: bool = False,
    chat: bool = False,
) -> list[dict[str, Any]]:
    """
    Questions from a builder, a known set or a file.

    Args:
        source (`str`): one of [`describe_sets`], a known set with its file such as
            `"winobias:pro_stereotyped_type1.txt.test"`; or a file of rows (`.json` with a list, `.jsonl` with a row
            per line). In a file, pictures are paths, relative to it.
        split (`str`, defaults to `"test"`): `"train"`, `"validation"` or `"test"`: which sentence frames of a builder.
            Files are read whole.
        occupations (`Sequence[Occupation]`): who the sentences are about.
        held_out_occupations (`bool`, defaults to `False`): of a builder, have the test split ask about one occupation
            in five alone, the validation split about one in five of the others, and the train split about the rest.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: checked rows.

    Raises:
        ValueError: the source or the split is unknown, or a row is wrong.
        FileNotFoundError: there is no such file.
    """
    check_split(split)
    name, colon, path = source.partition(":")
    known = _SETS.get(name)
    if known is not None and known.from_file == bool(colon):
        if held_out_occupations and not known.from_file:
            occupations = _occupations_of(split, occupations)
        rows = known.build(path if known.from_file else split, occupations, chat)
    elif source.endswith((".json", ".jsonl")):
        rows = read_rows(source)
    else:
        sets = ", ".join(describe_sets())
        raise ValueError(f"Unknown questions {source!r}: give one of {sets}, or a .json or .jsonl file.")
    check_questions(rows)
    return rows


def _occupations_of(split: str, occupations: Sequence[Occupation]) -> list[Occupation]:
    """Three parts that share no occupation."""
    seen, test = split_occupations(occupations, every=min(5, len(occupations)))
    if split == "test":
        return test
    train, validation = split_occupations(seen, every=min(5, len(seen)))
    return train if split == "train" else validation
