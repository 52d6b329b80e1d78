"""What the folder of a comparison belongs to."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def weights_mark(model: Any) -> str:
    """Sixteen letters that stand for the weights of a model: for some values of each."""
    seen = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if parameter.device.type != "meta":
            some = parameter.detach().flatten()[:: max(1, parameter.numel() // 64)]
            seen.update(name.encode() + some.float().cpu().numpy().tobytes())
    return seen.hexdigest()[:16]


def check_free(folder: Path, labels: Iterable[str]) -> None:
    """
    That nothing of the user's lies where a method is to be put.

    Args:
        folder (`Path`): of the comparison.
        labels (`Iterable[str]`): the names of the methods' folders in it.

    Raises:
        ValueError: there is something else than a finished fit (a folder with a `fit.json`) or an empty folder, or
            the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: give a folder for the comparison.")
    for place in (folder / label for label in labels):
        if (place / "fit.json").is_file() or not place.exists():
            continue
        if not place.is_dir() or any(place.iterdir()):
            raise ValueError(
                f"{place} is in the way and no fit of a comparison: it holds no fit.json. Move it, or give another "
                "folder; nothing was changed in it."
            )


def claimed(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What [`claim`] noted in a folder; nothing where there is no such record."""
    try:
        found = json.loads((Path(folder) / "comparison.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def claim(folder: Path, mark: dict[str, Any]) -> None:
    """Note what the folder's fits are of, or refuse a folder whose fits are of something else."""
    path = folder / "comparison.json"
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            differing = [key for key in mark if before.get(key) != json.loads(json.dumps(mark[key]))]
        except (ValueError, AttributeError):
            raise ValueError(f"{path} is not a record of a comparison. Give another folder, or delete it.") from None
        if differing:
            raise ValueError(
                f"{folder} holds a comparison that differs in {', '.join(differing)}: its fits would not be of these "
                "questions. Give another folder, or delete it."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
