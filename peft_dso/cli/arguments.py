"""What several commands share: their options, and lists of strengths."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional


CPU = ("cpu", "cpu:0")  # what `--device` calls it; the trainer takes it beside an accelerator too


def say(line: str) -> None:
    print(line, flush=True)


def chosen_questions(
    options: argparse.Namespace, split: str, sources: Optional[Sequence[str]] = None
) -> list[dict[str, Any]]:
    from ..questions import OCCUPATIONS, load_occupations, load_questions, subset

    table = list(OCCUPATIONS) if options.occupations is None else load_occupations(options.occupations)
    rows = [
        row
        for source in sources or options.questions
        for row in load_questions(
            source,
            split,
            occupations=table,
            held_out_occupations=options.held_out_occupations,
            chat=options.chat,
        )
    ]
    return subset(rows, options.limit)


def shown_name(name: str) -> str:
    """A folder by its own name, so that no report tells where it lay."""
    return Path(name).name if os.path.isdir(name) else name


def shown_names(sources: Sequence[str]) -> str:
    """Sets of questions, as reports and cards name them: of a file without its folder."""
    return ", ".join(Path(source).name for source in sources)


def strength_list(text: str) -> list[float]:
    """
    Strengths from `"0,0.5,1"`, or from `"0,0.2,...,1"` with the steps in between filled in.

    Raises:
        argparse.ArgumentTypeError: the text is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        if "..." not in parts:
            return [float(part) for part in parts]
        place = parts.index("...")
        first, second, last = float(parts[place - 2]), float(parts[place - 1]), float(parts[place + 1])
        steps = round((last - second) / (second - first))
        if place < 2 or not 1 <= steps <= 1000 or abs(second + steps * (second - first) - last) > 1e-9:
            raise ValueError(text)
        between = [round(second + k * (second - first), 10) for k in range(1, steps)]
        return [float(p) for p in parts[:place]] + between + [float(p) for p in parts[place + 1 :]]
    except (ValueError, IndexError, ZeroDivisionError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of strengths such as 0,0.5,1 or 0,0.2,...,1") from None


def joined_lists(arguments: Sequence[str]) -> list[str]:
    """
    Arguments in which a list that begins with a minus is joined to its option ("--strengths=-1,0,1"): argparse would
    take it for an option of its own.
    """
    joined: list[str] = []
    for argument in arguments:
        if joined and re.fullmatch(r"--[\w-]+", joined[-1]) and re.match(r"-[\d.][^,]*,", argument):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="folder or Hub name of the base model; smollm2: the quick start's"
    )
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")


def add_device(parser: argparse.ArgumentParser, such_as: str = "cpu or cuda:1") -> None:
    parser.add_argument("--device", help=f"such as {such_as}; default the accelerator, if there is one")


def check_device(wanted: str, taken: Any) -> None:
    """
    Refuse a device that is not the trainer's, which transformers chooses.

    Args:
        wanted (`str`): what `--device` says.
        taken (`torch.device`): the trainer's.

    Raises:
        ValueError: they differ.
    """
    if wanted not in (taken.type, f"{taken.type}:{taken.index or 0}"):
        index = wanted.partition(":")[2] or "1"
        raise ValueError(
            f"--device {wanted}: this training takes {taken} (the first accelerator that it sees; the CPU with "
            f"--device cpu). Leave --device out; CUDA_VISIBLE_DEVICES={index} in front shows it another one."
        )


def add_questions(parser: argparse.ArgumentParser, required: bool) -> None:
    from ..questions import describe_sets

    parser.add_argument(
        "--questions",
        action="append",
        required=required,
        metavar="Q",
        help="; ".join(f"{name}: {line}" for name, line in describe_sets().items()).replace("%", "%%")
        + "; or a .json or .jsonl file of rows; may be given several times",
    )
    parser.add_argument("--occupations", help="csv with occupation and share_women (percent) or majority")
    parser.add_argument(
        "--held-out-occupations",
        action="store_true",
        help="of a builder: measure on one occupation in five alone, and train without them",
    )
    parser.add_argument(
        "--chat",
        action="store_true",
        help="prompts as messages for an instruction-tuned model; rows of a file are asked as they stand",
    )
    parser.add_argument(
        "--limit",
        type=int,
        help="about how many questions to use, in whole pairs",
    )
