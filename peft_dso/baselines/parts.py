"""
The questions of a comparison: to fit on, to choose by, and to measure on; and what is checked before anything is
fitted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ..questions import OCCUPATIONS, Occupation, check_questions, hold_out, subset
from ..scoring import check_reads_pictures, row_images
from .activations import encode_text
from .contrasts import balanced, fit_rows, majorities_of, pro_gender
from .iti import head_count, probe_split
from .methods import METHODS, Method
from .places import attention_outputs, block_norms, check_bare, middle_blocks, residual_writer
from .validation import validate


Rows = list[dict[str, Any]]
LEAST_PAIRS = 8  # a contrast of fewer is two or three questions of a kind
LEAST_MASS = 1e-3  # a model that gives less probability than that to the named answers does not answer


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


def question_key(row: Mapping[str, Any]) -> str:
    """What makes a question the same as another: what the model reads, who it is about, and the answers."""
    return digest([row["prompt"], row_images(row), row["occupation"], sorted(row["answers"])])


def digest(value: Any) -> str:
    """Sixteen letters that stand for a value; pictures by what they show."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_shown).encode()).hexdigest()[:16]


def _shown(value: Any) -> Any:
    if hasattr(value, "tobytes"):
        return [str(getattr(value, "size", "")), hashlib.sha256(value.tobytes()).hexdigest()]
    return list(value) if isinstance(value, (tuple, set, frozenset)) else str(value)


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
    every split, are divided here.

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
        ValueError: there are too few questions to divide.
    """
    keyed = [[(question_key(row), row) for row in rows] for rows in (train, validation, test)]
    common = {key for key, _ in keyed[0]} & {key for key, _ in keyed[2]}
    if common:
        rest, held = hold_out([row for key, row in keyed[0] if key in common], 0.25, occupations=occupations)
        fitted, chosen = hold_out(rest, 0.2, occupations=occupations, seed=1)
        train, validation, test = (
            [*(row for key, row in rows if key not in common), *part]
            for rows, part in zip(keyed, (fitted, chosen, held), strict=True)
        )
    draw = _halves if halves else subset
    return Parts([dict(row) for row in train], draw(validation, validated), subset(test, measured))


def _halves(rows: Sequence[Mapping[str, Any]], count: Optional[int]) -> Rows:
    """About `count` questions, half of them ambiguous; more of one kind where the other has too few."""
    if count is None or count >= len(rows):
        return [dict(row) for row in rows]
    ambiguous = sum(row.get("right") is None for row in rows)
    fewer = min(ambiguous, len(rows) - ambiguous)
    return subset(rows, max(1, count // 2, count - fewer), each_kind=True)


def check_parts(parts: Parts, methods: Sequence[Method], occupations: Sequence[Occupation] = OCCUPATIONS) -> None:
    """
    That the questions can be fitted on, chosen by and measured on.

    Args:
        parts (`Parts`): the questions.
        methods (`Sequence[Method]`): what is to be fitted.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.

    Raises:
        ValueError: a part is empty, has no ambiguous question or one occupation only, or cannot be balanced.
    """
    for name in ("train", "validation", "test"):
        rows = getattr(parts, name)
        try:
            check_questions(rows)
            fit_rows(rows)
        except ValueError as error:
            raise ValueError(f"The {name} part of the questions is of no use for a comparison: {error}") from None
    keys = {name: {question_key(row) for row in getattr(parts, name)} for name in ("train", "validation", "test")}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if both := len(keys[one] & keys[other]):
            raise ValueError(
                f"{both} questions stand in the {one} part and in the {other} part: a method would be judged on what "
                "it was fitted or chosen on. Give each part questions of its own."
            )
    if any(method.contrasts for method in methods):
        pairs = balanced(parts.train, occupations=occupations)
        if len(pairs) < LEAST_PAIRS:
            raise ValueError(
                f"{len(pairs)} balanced questions are too few to fit on: give {LEAST_PAIRS} ambiguous ones or more, "
                "about occupations of both majorities."
            )
        if any(method.name == "iti" for method in methods):
            known = majorities_of(occupations)
            probe_split([row["occupation"] for row in pairs], [pro_gender(row, known) for row in pairs], 0)


def _leave_out(names: Sequence[str]) -> str:
    """How to go on without some methods."""
    others = ",".join(name for name in METHODS if name not in names)
    return f"To leave out {', '.join(names)}, name the others: --methods {others}."


def check_model(model: Any, processor: Any, parts: Parts, methods: Sequence[Method]) -> None:
    """
    That the methods can be fitted to a model, and that it answers the questions at all.

    Args:
        model (`PreTrainedModel`): the base model.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        parts (`Parts`): the questions.
        methods (`Sequence[Method]`): what is to be fitted.

    Raises:
        ValueError: the model has an adapter or is of no known kind, a method finds no place in it, or it gives none
            of the named answers.
    """
    check_bare(model)
    if any(row_images(row) for rows in (parts.train, parts.validation, parts.test) for row in rows):
        check_reads_pictures(model)
    text = encode_text(processor, parts.train[0])
    names = {method.name for method in methods}
    if "iti" in names:
        found = attention_outputs(model, text).values()
        head_count(model, {name: model.get_submodule(name) for name in found})
    if "caa-residual" in names:
        for block in middle_blocks(list(block_norms(model))):
            try:
                residual_writer(model, block, text)
            except ValueError as error:
                raise ValueError(f"caa-residual cannot be fitted: {error} {_leave_out(['caa-residual'])}") from None
    base = validate(model, processor, parts.validation)
    if not base.mass >= LEAST_MASS:
        raise ValueError(
            f"The model leaves a probability of {base.mass:.2g} to the named answers of the validation questions: it "
            "abstains from nearly all, and there is nothing to compare. Give prompts that it answers (--chat for an "
            "instruction-tuned model), or the forms in which it answers."
        )
