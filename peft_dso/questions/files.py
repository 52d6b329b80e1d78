"""Reading files: tables, JSON Lines, rows of questions. A record ends at a line feed; errors name file and line."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


StrPath = str | os.PathLike[str]


def local_file(path: StrPath) -> Path:
    """
    The local file of a path, downloaded first if it is one of the Hub.

    Args:
        path (`str`): a local file, or `hf://datasets/OWNER/NAME[@REVISION]/FILE`.

    Returns:
        `Path`: the file.

    Raises:
        FileNotFoundError: there is no such local file.
        ValueError: the address of the Hub is not of that form.
    """
    text = os.fspath(path)
    if text.startswith("hf://"):
        match = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)", text)
        if not match:
            raise ValueError(f"{text!r} is not of the form hf://datasets/OWNER/NAME[@REVISION]/FILE.")
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(match[1], match[3], repo_type="dataset", revision=match[2]))
    if not Path(text).is_file():
        raise FileNotFoundError(f"There is no file {text!r}.")
    return Path(text)


def read_lines(path: StrPath) -> Iterator[tuple[int, str]]:
    """
    The lines of a text file, one by one. Only a line feed ends a line: U+2028 and the like are part of a text, and
    `json.dumps(..., ensure_ascii=False)` writes them as they are.

    Args:
        path (`str`): a UTF-8 file, see [`local_file`]; a byte order mark and carriage returns are dropped.

    Yields:
        The number of the line, from 1, and its text; lines without text are left out.

    Raises:
        ValueError: the file is no UTF-8 text.
    """
    number = 0
    try:
        with open(local_file(path), encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text after line {number}: {error}.") from None


def read_table(path: StrPath, required: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """
    The rows of a csv or tsv file with a header.

    Args:
        path (`str`): see [`local_file`]; the ending `.tsv` makes the tab the delimiter.
        required (`Iterable[str]`): columns that must be there.

    Yields:
        The number of the row's last line and its values by column; empty text for a column left out at the end.

    Raises:
        ValueError: a column is missing, a row has more fields than the header, or a quote is not closed.
    """
    file = local_file(path)
    with open(file, newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",", restval="", strict=True)
        try:
            reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            missing = [column for column in required if column not in reader.fieldnames]
            if missing:
                raise ValueError(f"{file} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames)}.")
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames) + len(row[None])} fields and "
                        f"{len(reader.fieldnames)} columns; put text that holds a delimiter in quotes."
                    )
                if any(value.strip() for value in row.values()):
                    yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}.") from None


def read_rows(path: StrPath) -> list[dict[str, Any]]:
    """
    Rows from a JSON file (a list) or a JSON Lines file, with their pictures opened.

    Args:
        path (`str`): the file; a record of a `.jsonl` file ends at a line feed. Pictures are paths, relative to it.

    Returns:
        `list[dict]`: the rows, unchecked.

    Raises:
        ValueError: the file is not of that form, or a picture cannot be read.
    """
    file = local_file(path)
    rows: Any = []
    where = str(file)
    try:
        if file.suffix == ".jsonl":
            for number, line in read_lines(file):
                where = f"{file}, line {number}"
                rows.append(json.loads(line))
        else:
            rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{file} must hold a list of rows.")
    for number, row in enumerate(rows):
        paths = row.pop("image", None)
        paths = row.get("images") if paths is None else [paths]
        if paths:
            if not isinstance(paths, list):
                raise ValueError(f"{file}, row {number}: images must be a list of paths, got {paths!r}.")
            row["images"] = [_picture(file.parent, path, f"{file}, row {number}") for path in paths]
    return rows


def _picture(folder: Path, path: Any, where: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(folder / path) as picture:
            return picture.convert("RGB")
    except (OSError, TypeError, UnidentifiedImageError) as error:
        raise ValueError(f"{where}: the picture {path!r} cannot be read ({error}).") from None
