"""What `peft-dso train` trains on, and what it measures on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from .arguments import chosen_questions


# Of each kind of question; more make the errors smaller and the measuring longer.
MEASURED = 600


def train_and_test(options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """What to train on, and what to measure on: sets that are held out."""
    from ..questions import hold_out, subset
    from ..questions.splits import hold_occupations

    builders = [source for source in options.questions if ":" not in source and not os.path.isfile(source)]
    files = [source for source in options.questions if source not in builders]
    train: list[dict[str, Any]] = []
    test: list[dict[str, Any]] = []
    if builders:
        train += chosen_questions(options, "train", builders)
        test += chosen_questions(options, "test", builders)
    if files:
        rows = chosen_questions(options, "train", files)
        parts = (rows, []) if options.test else hold_out(rows, occupations=options.held_out_occupations)
        train, test = train + parts[0], test + parts[1]
    if options.test:
        test = chosen_questions(options, "test", options.test)
    if options.held_out_occupations and (options.test or (builders and files)):
        # Neither a --test set nor a file's draw knows of the occupations that are held out elsewhere.
        train, _ = hold_occupations(train, {row["occupation"] for row in test})
        if options.test and not train:
            raise ValueError(
                "--held-out-occupations: the --test set asks about every occupation of --questions, and nothing "
                "is left to train on. Leave the option out, or test on fewer occupations."
            )
    name = "held-out occupations" if options.held_out_occupations else "held-out questions"
    return train, {"the test set" if options.test else name: subset(test, MEASURED, each_kind=True)}


def count_in_both(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> int:
    """How many of the questions to measure on are trained on."""
    from ..scoring.keys import question_key

    seen = {question_key(row) for row in train}
    return sum(question_key(row) in seen for row in test)


def check_ambiguous(train: Sequence[dict[str, Any]], test: dict[str, list[dict[str, Any]]]) -> None:
    """
    Refuse questions that all have a right answer: with it the model is no less fair.

    Raises:
        ValueError: there is nothing to make fair, or nothing that could show a bias.
    """
    if not any(row.get("right") is None for row in train):
        raise ValueError(
            f"--questions: all {len(train)} questions to train on have a right answer: there is nothing to make fair. "
            "Give some whose answers are all equally right (right: null)."
        )
    for name, rows in test.items():
        if not any(row.get("right") is None for row in rows):
            raise ValueError(
                f"--test: all {len(rows)} questions of {name} have a right answer and cannot show bias. Give a --test "
                "set with some whose answers are all equally right (right: null)."
            )
