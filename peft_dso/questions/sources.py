"""Questions by name or from a file, as the command line takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .coreference import AMBIGUOUS_SENTENCES, UNAMBIGUOUS_SENTENCES, coreference_questions
from .loaders import load_bbq_gender, load_synthbias, load_winobias, load_winogender, local_file
from .occupations import OCCUPATIONS, Occupation
from .pronouns import pronoun_questions, split_occupations
from .schema import check_questions


def _pronouns(split: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    if chat:
        raise ValueError("The pronoun task continues plain text: leave --chat off.")
    return pronoun_questions(split, occupations) + pronoun_questions(split, occupations, ambiguous=False)


def _coreference(split: str, occupations: Sequence[Occupation], chat: bool) -> list[dict[str, Any]]:
    rows = []
    for ambiguous, sentences in ((True, AMBIGUOUS_SENTENCES), (False, UNAMBIGUOUS_SENTENCES)):
        # One frame in four is for the test.
        chosen = [s for number, s in enumerate(sentences) if (number % 4 == 1) == (split == "test")]
        rows += coreference_questions(occupations, ambiguous=ambiguous, sentences=chosen, chat=chat)
    return rows


BUILDERS: dict[str, Callable[[str, Sequence[Occupation], bool], list[dict[str, Any]]]] = {
    "pronouns": _pronouns,
    "coreference": _coreference,
}
LOADERS: dict[str, Callable[[str, Sequence[Occupation], bool], list[dict[str, Any]]]] = {
    "winobias": lambda path, occupations, chat: load_winobias(path, occupations, chat=chat),
    "winobias-open": lambda path, occupations, chat: load_winobias(path, occupations, ambiguous=True, chat=chat),
    "winogender": lambda path, occupations, chat: load_winogender(path, occupations, chat=chat),
    "synthbias": lambda path, occupations, chat: load_synthbias(path, occupations, chat=chat),
    "bbq": lambda path, occupations, chat: load_bbq_gender(path, chat=chat),
}


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
        source (`str`): `"pronouns"` or `"coreference"`; a known set with its file, such as
            `"winobias:pro_stereotyped_type1.txt.test"` (also `winobias-open`, `winogender`, `synthbias`, `bbq`); or a
            file of rows (`.json` with a list, `.jsonl` with a row per line). In a file, pictures are paths, relative
            to it.
        split (`str`, defaults to `"test"`): `"train"` or `"test"`: which sentence frames of a builder. Files are read
            whole.
        occupations (`Sequence[Occupation]`): who the sentences are about.
        held_out_occupations (`bool`, defaults to `False`): of a builder, leave one occupation in five out of the train
            split and have the test split ask about those alone.
        chat (`bool`, defaults to `False`): prompts as messages.

    Returns:
        `list[dict]`: checked rows.

    Raises:
        ValueError: the source or the split is unknown, or a row is wrong.
        FileNotFoundError: there is no such file.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: choose 'train' or 'test'.")
    kind, colon, path = source.partition(":")
    if source in BUILDERS:
        if held_out_occupations:
            seen, held_out = split_occupations(occupations)
            occupations = seen if split == "train" else held_out
        rows = BUILDERS[source](split, occupations, chat)
    elif colon and kind in LOADERS:
        rows = LOADERS[kind](path, occupations, chat)
    elif source.endswith((".json", ".jsonl")):
        rows = read_rows(source)
    else:
        known = ", ".join([*BUILDERS, *(f"{name}:FILE" for name in LOADERS)])
        raise ValueError(f"Unknown questions {source!r}: give one of {known}, or a .json or .jsonl file.")
    check_questions(rows)
    return rows


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Rows from a JSON file (a list) or a JSON Lines file, with their pictures opened.

    Args:
        path (`str`): the file.

    Returns:
        `list[dict]`: the rows, unchecked.

    Raises:
        ValueError: the file is not of that form, or a picture cannot be read.
    """
    file = local_file(path)
    text = file.read_text(encoding="utf-8")
    rows: Any = None
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold a list of rows.")
    for number, row in enumerate(rows):
        paths = row.pop("image", None)
        paths = row.get("images") if paths is None else [paths]
        if paths:
            row["images"] = [_picture(file.parent, path, f"{file}, row {number}") for path in paths]
    return rows


def _picture(folder: Path, path: Any, where: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(folder / path) as picture:
            return picture.convert("RGB")
    except (OSError, TypeError, UnidentifiedImageError) as error:
        raise ValueError(f"{where}: the picture {path!r} cannot be read ({error}).") from None
