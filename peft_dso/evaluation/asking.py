"""What a model says to questions at several strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from ..objective.penalties import answers_kl
from ..scoring import EncodedQuestion, Scores, batches, evaluating, prepare, reads_tries, score_prepared
from .knob import Knob, knob_of


@dataclass
class Said:
    """
    What a model says at one strength.

    Args:
        answers (`np.ndarray`): log-probabilities of the answers, shape `(questions, answers)`, -inf where a question
            has fewer.
        abstained (`np.ndarray`): log-probability of the named abstentions, shape `(questions,)`.
        kl (`np.ndarray`, *optional*): the KL to strength 0 (see [`~peft_dso.objective.answers_kl`]), shape
            `(questions,)`; nan for a question whose answers have other tokens as the knob asks it.
    """

    answers: np.ndarray
    abstained: np.ndarray
    kl: Optional[np.ndarray] = None

    def fill(self, numbers: list[int], scores: Scores, base: Scores, unlike: list[int]) -> None:
        """Note the scores of some of the questions, given the base's, and which of them have other tokens there."""
        # To the main memory first: there are devices (MPS) without float64.
        self.answers[numbers, : scores.answers.shape[1]] = scores.answers.cpu().double().numpy()
        self.abstained[numbers] = scores.abstentions.cpu().double().numpy()
        if self.kl is not None:  # exactly 0 for the base itself
            kl = answers_kl(scores, base).cpu().numpy()
            kl[unlike] = np.nan
            self.kl[numbers] = kl


def ask(
    model: nn.Module,
    encoded: Sequence[EncodedQuestion],
    strengths: Sequence[float],
    *,
    knob: Optional[Knob] = None,
    rewritten: Optional[Sequence[EncodedQuestion]] = None,
    progress: Callable[[int], Any] = lambda n: None,
    batch_tokens: int = 1024,
) -> dict[float, Said]:
    """
    What a model says at several strengths, batch by batch, so that no distribution is kept.

    Args:
        model (`nn.Module`): a model; its strength is restored afterwards.
        encoded (`Sequence[EncodedQuestion]`): questions.
        strengths (`Sequence[float]`): the strengths.
        knob (`Knob`, *optional*): what is turned; default [`knob_of`] the model.
        rewritten (`Sequence[EncodedQuestion]`, *optional*): the questions as the knob asks them at any other strength
            than 0; default as they are.
        progress (`Callable`): called with the number of questions done.
        batch_tokens (`int`, defaults to 1024): tokens per batch.

    Returns:
        `dict[float, Said]`: by strength; strength 0 is always there.
    """
    knob = knob_of(model) if knob is None else knob
    turned = encoded if rewritten is None else rewritten
    order = list(dict.fromkeys([0.0, *strengths]))
    shape = len(encoded), max(len(question.answers) for question in encoded)
    said = {w: Said(np.full(shape, -np.inf), np.full(shape[0], -np.inf), np.zeros(shape[0])) for w in order}
    with evaluating(model), torch.no_grad():
        packed = True
        for w in {0.0, max(order, key=abs)}:  # an adapter such as a soft prompt may not take what its base takes
            with knob.at(w):
                packed = packed and reads_tries(model, turned if w else encoded)
        for numbers in batches(encoded, batch_tokens):
            prepared = prepare([encoded[n] for n in numbers], packed)  # laid out once for all strengths
            other = prepared if rewritten is None else prepare([turned[n] for n in numbers], packed)
            unlike = [k for k, n in enumerate(numbers) if _asked(encoded[n]) != _asked(turned[n])]
            with knob.at(0.0):
                base = score_prepared(model, prepared)
            for w in order:
                scores = base
                if w:
                    with knob.at(w):
                        scores = score_prepared(model, other)
                said[w].fill(numbers, scores, base, unlike if w else [])
                progress(len(numbers))
    return said


def _asked(question: EncodedQuestion) -> tuple[Any, Any]:
    """The tokens of its answers and of its abstentions."""
    return question.answers, question.abstentions


def answer_log_probs(
    model: nn.Module,
    encoded: Sequence[EncodedQuestion],
    strengths: Sequence[float],
    progress: Callable[[int], Any] = lambda n: None,
    batch_tokens: int = 1024,
) -> tuple[dict[float, np.ndarray], dict[float, np.ndarray]]:
    """[`ask`] in the form of earlier versions: by strength the log-probabilities of the answers, and the KL."""
    said = ask(model, encoded, strengths, progress=progress, batch_tokens=batch_tokens)
    return {w: x.answers for w, x in said.items()}, {w: x.kl for w, x in said.items() if x.kl is not None}
