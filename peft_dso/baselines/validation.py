"""What a free choice (layer, wording) is made by: a few figures on questions that the method was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from ..evaluation.answered import Answered
from ..evaluation.bias import occupation_biases
from ..questions import check_questions, split_questions
from ..scoring import encode_row, score


@dataclass(frozen=True)
class Validation:
    """
    What a model says to the validation questions.

    Args:
        bias (`float`): per-occupation bias from probabilities.
        accuracy (`float`): unambiguous accuracy; 1 where there is no unambiguous question.
        mass (`float`): the probability that is left on the named answers of the ambiguous questions.
    """

    bias: float
    accuracy: float
    mass: float

    def cost(self, base: Validation) -> float:
        """
        What a choice is made by, lower is better: the bias, and what is lost of the base's accuracy and mass. A bias
        that falls because nothing is answered any more, or nothing rightly, is not worth having.
        """
        return self.bias + max(0.0, base.accuracy - self.accuracy) + max(0.0, base.mass - self.mass)


def validate(model: nn.Module, processor: Any, questions: Sequence[Mapping[str, Any]]) -> Validation:
    """
    Measure a model as it is.

    Args:
        model (`nn.Module`): any causal language model.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): with ambiguous ones.

    Returns:
        `Validation`: the figures.

    Raises:
        ValueError: there is no ambiguous question.
    """
    check_questions(questions)
    rows = list(questions)
    widest = max(len(row["answers"]) for row in rows)
    log_p = torch.full((len(rows), widest), -torch.inf)
    for numbers, scores in score(model, [encode_row(processor, row).answers_only() for row in rows]):
        log_p[numbers, : scores.answers.shape[1]] = scores.answers.float().cpu()
    said = Answered(rows, log_p.double().numpy())
    if not len(said.ambiguous):
        raise ValueError("There is no ambiguous question (right=None) to validate on.")
    shares, occupations, _, fair = said.shares_of(first_choice=False)
    return Validation(
        float(np.nanmean(np.abs(list(occupation_biases(shares, occupations, fair).values())))),
        float(said.correct.mean()) if len(said.correct) else 1.0,
        float(log_p[said.ambiguous].exp().sum(-1).mean()),
    )


def fit_and_validation(
    questions: Sequence[Mapping[str, Any]], validation: Optional[Sequence[Mapping[str, Any]]], seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    The questions to fit on and those to choose by: one occupation in five is held out where none are given.

    Args:
        questions (`Sequence[Mapping]`): to fit on.
        validation (`Sequence[Mapping]`, *optional*): to choose by.
        seed (`int`): of the draw.

    Raises:
        ValueError: there are too few occupations to hold one out.
    """
    if validation is not None:
        return [dict(row) for row in questions], [dict(row) for row in validation]
    return split_questions(questions, by="occupation", share=0.2, seed=seed)
