"""
The questions of a comparison: to fit on, to choose by, and to measure on; and what is checked before anything is
fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

from ..evaluation.warnings import LEAST_MASS
from ..questions import OCCUPATIONS, Occupation, check_questions, hold_out, subset, trainable_groups
from ..questions.splits import hold_occupations, missing, occupations_named, unit_column
from ..scoring import check_readable, check_reads_pictures, encode_row, row_images
from ..scoring.keys import question_key
from .activations import encode_text
from .contrasts import balanced, fit_rows, majorities_of, pro_gender
from .iti import head_count, probe_split
from .methods import METHODS, Method
from .places import attention_outputs, block_norms, check_bare, middle_blocks, residual_writer
from .validation import validate


Rows = list[dict[str, Any]]
PAIRS_OF_PARTS = (("train", "validation"), ("train", "test"), ("validation", "test"))
LEAST_PAIRS = 8  # a contrast of fewer is two or three questions of a kind


@dataclass(frozen=True)
class Parts:
    """
    The three parts of the questions; none shares a sentence frame or a pair with another.

    Args:
        train (`list[dict]`): to fit on.
        validation (`list[dict]`): to choose by.
        test (`list[dict]`): to measure on.
    """

    train: Rows
    validation: Rows
    test: Rows


def parts_of(
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    test: Sequence[Mapping[str, Any]],
    *,
    measured: Optional[int] = None,
    validated: Optional[int] = None,
    occupations: bool = False,
    halves: bool = True,
) -> Parts:
    """
    Put the parts together. Questions that stand in `train` and in `test`, as those of a file do, which is the same in
    every split, are divided here. A question that stands in a part twice counts once.

    Args:
        train (`Sequence[Mapping]`): to fit on.
        validation (`Sequence[Mapping]`): to choose by.
        test (`Sequence[Mapping]`): to measure on.
        measured (`int`, *optional*): about how many of the test questions to use (see [`~peft_dso.questions.subset`]);
            default all.
        validated (`int`, *optional*): the same for the validation questions, half of them ambiguous where there are
            enough of either kind: the accuracy must be told as finely as the bias.
        halves (`bool`, defaults to `True`): `False` draws the validation questions in their own proportions.
        occupations (`bool`, defaults to `False`): divide by whole occupations (see [`~peft_dso.questions.hold_out`]).

    Returns:
        `Parts`: the parts.

    Raises:
        ValueError: there are too few questions to divide, or whole occupations were to be held out and parts share
            some.
    """
    each = [{question_key(row): dict(row) for row in reversed(rows)} for rows in (train, validation, test)]
    keyed = [list(reversed(rows.items())) for rows in each]  # the first of those that are alike
    train, validation, test = ([row for _, row in rows] for rows in keyed)
    common = {key for key, _ in keyed[0]} & {key for key, _ in keyed[2]}
    if common:
        own = [[row for key, row in rows if key not in common] for rows in keyed]
        divide = _by_occupation if occupations else _by_column
        divided = divide([row for key, row in keyed[0] if key in common], own)
        train, validation, test = ([*one, *other] for one, other in zip(own, divided, strict=True))
    draw = _halves if halves else subset
    parts = Parts([dict(row) for row in train], draw(validation, validated), subset(test, measured))
    if occupations:
        check_occupations(parts)
    return parts


def _by_column(rows: Rows, own: Sequence[Rows]) -> tuple[Rows, Rows, Rows]:
    """Questions divided in three; the second draw goes by what the first one went by, so that no frame is cut."""
    by = unit_column(rows)
    if by != "group" and any(own):  # too few frames to divide: those of a builder beside them are what is divided
        rows = [{**row, "group": None} for row in rows]
    try:
        rest, test = hold_out(rows, 0.25, by)
        return (*hold_out(rest, 0.2, by, seed=1), test)
    except ValueError as error:
        raise ValueError(
            f"The questions that are the same in every part cannot be divided in three: {error}"
        ) from None


def _by_occupation(rows: Rows, own: Sequence[Rows]) -> tuple[Rows, Rows, Rows]:
    """
    Questions divided in three, by whole occupations: first by those that have a part already, in the questions of a
    builder beside these, then by a draw among the others.
    """
    parts: tuple[Rows, Rows, Rows] = ([], [], [])
    for place in (2, 1, 0):
        rows, named = hold_occupations(rows, {row["occupation"] for row in own[place]})
        parts[place].extend(named)
    for place, share, seed in ((2, 0.25, 0), (1, 0.2, 1)):
        try:
            rows, held = hold_out(rows, share, occupations=True, seed=seed)
        except ValueError:
            if not any(own):
                raise
            break  # too few others to hold some out: there are those of the builder
        parts[place].extend(held)
    parts[0].extend(rows)
    return parts


def _shared(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> set[str]:
    """The occupations of those of `others` that name nobody whom `rows` do not name too."""
    known = {name for row in rows for name in occupations_named(row)}
    return {str(row["occupation"]) for row in others if occupations_named(row) <= known}


def _halves(rows: Sequence[Mapping[str, Any]], count: Optional[int]) -> Rows:
    """About `count` questions, half of them ambiguous; more of one kind where the other has too few."""
    if count is None or count >= len(rows):
        return [dict(row) for row in rows]
    ambiguous = sum(row.get("right") is None for row in rows)
    fewer = min(ambiguous, len(rows) - ambiguous)
    return subset(rows, max(1, count // 2, count - fewer), each_kind=True)


def check_occupations(parts: Parts) -> None:
    """
    That no part asks about the occupations of another.

    Args:
        parts (`Parts`): the questions.

    Raises:
        ValueError: a question names nobody whom the questions of an earlier part do not name too.
    """
    for one, other in PAIRS_OF_PARTS:
        if common := _shared(getattr(parts, one), getattr(parts, other)):
            raise ValueError(
                f"The {other} part asks about occupations of the {one} part ({', '.join(sorted(common)[:5])}), and "
                "whole occupations were to be held out: leave such questions out of a file, or hold out frames."
            )


def _check_apart(parts: Parts) -> None:
    """That no question stands in two parts, no pair, and no sentence frame where the frames are what is divided."""
    by = unit_column([*parts.train, *parts.validation, *parts.test])
    for names in PAIRS_OF_PARTS:
        one, other = (getattr(parts, name) for name in names)
        where = f"in the {names[0]} part and in the {names[1]} part"
        if both := len({question_key(row) for row in one} & {question_key(row) for row in other}):
            raise ValueError(
                f"{both} questions stand {where}: a method would be judged on what it was fitted or chosen on. Give "
                "each part questions of its own."
            )
        for column in ("pair", *(["group"] if by == "group" and _shared(one, other) else [])):
            values = [{str(row[column]) for row in rows if not missing(row.get(column))} for rows in (one, other)]
            if common := values[0] & values[1]:
                raise ValueError(
                    f"The {column} {sorted(common)[0]!r} stands {where}, and {len(common) - 1} more: questions that "
                    "belong together are to be fitted on or measured on. Divide them by "
                    f"hold_out(questions, by={column!r}), or give a {column} of another source another name."
                )


def check_parts(parts: Parts, methods: Sequence[Method], occupations: Sequence[Occupation] = OCCUPATIONS) -> None:
    """
    That the questions can be fitted on, chosen by and measured on.

    Args:
        parts (`Parts`): the questions.
        methods (`Sequence[Method]`): what is to be fitted.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.

    Raises:
        ValueError: a part is empty, has no ambiguous question or one occupation only, or cannot be balanced, or two
            parts share a question, a pair, or a sentence frame without being apart by their occupations.
    """
    contrasted = any(method.contrasts for method in methods)
    for name in ("train", "validation", "test"):
        rows = getattr(parts, name)
        try:
            check_questions(rows)
            _check_open(rows)
            with _or_leave_out([m.name for m in METHODS.values() if m.contrasts]):
                if contrasted:
                    fit_rows(rows)
        except ValueError as error:
            raise ValueError(f"The {name} part of the questions is of no use for a comparison: {error}") from None
    _check_apart(parts)
    if contrasted:
        with _or_leave_out([m.name for m in METHODS.values() if m.contrasts]):
            pairs = balanced(parts.train, occupations=occupations)
            if len(pairs) < LEAST_PAIRS:
                raise ValueError(
                    f"{len(pairs)} balanced questions are too few to fit on: give {LEAST_PAIRS} ambiguous ones or "
                    "more, about occupations of both majorities."
                )
        if any(method.name == "iti" for method in methods):
            known = majorities_of(occupations)
            with _or_leave_out(["iti"]):
                probe_split([row["occupation"] for row in pairs], [pro_gender(row, known) for row in pairs], 0)


def _check_open(rows: Sequence[Mapping[str, Any]]) -> None:
    """That ambiguous questions about several occupations can show two groups, which is what every method needs."""
    ambiguous = [row for row in rows if row.get("right") is None]
    if not ambiguous:
        raise ValueError("There is no ambiguous question (right=None).")
    trainable_groups(ambiguous)
    if len(names := {row["occupation"] for row in ambiguous}) < 2:
        raise ValueError(f"All questions are about {names.pop()!r}. Give questions about several occupations.")


@contextmanager
def _or_leave_out(names: Sequence[str]) -> Iterator[None]:
    """What is refused within the block, refused with the methods that need it and how to go on without them."""
    try:
        yield
    except ValueError as error:
        others = ",".join(name for name in METHODS if name not in names)
        raise ValueError(
            f"{error} Without that {', '.join(names)} cannot be had; for the others give --methods {others}."
        ) from None


def check_model(model: Any, processor: Any, parts: Parts, methods: Sequence[Method]) -> None:
    """
    That the methods can be fitted to a model, and that it answers the questions at all.

    Args:
        model (`PreTrainedModel`): the base model.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        parts (`Parts`): the questions.
        methods (`Sequence[Method]`): what is to be fitted.

    Raises:
        ValueError: the model has an adapter or is of no known kind, a method finds no place in it, it gives none of
            the named answers, or a question is longer than its positions.
    """
    check_bare(model)
    if any(row_images(row) for rows in (parts.train, parts.validation, parts.test) for row in rows):
        check_reads_pictures(model)
    for rows in (parts.train, parts.validation, parts.test):
        check_readable(model, [encode_row(processor, row) for row in rows])
    text = encode_text(processor, parts.train[0])
    names = {method.name for method in methods}
    if "iti" in names:
        with _or_leave_out(["iti"]):
            found = attention_outputs(model, text).values()
            head_count(model, {name: model.get_submodule(name) for name in found})
    if "caa-residual" in names:
        for block in middle_blocks(list(block_norms(model))):
            with _or_leave_out(["caa-residual"]):
                residual_writer(model, block, text)
    base = validate(model, processor, parts.validation)
    if not base.mass >= LEAST_MASS:
        raise ValueError(
            f"The model leaves a probability of {base.mass:.2g} to the named answers of the validation questions: it "
            "abstains from nearly all, and there is nothing to compare. Give prompts that it answers (--chat for an "
            "instruction-tuned model), or the forms in which it answers."
        )
