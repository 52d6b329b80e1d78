"""What a model says to questions at several strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from ..objective.penalties import kl_divergence
from ..scoring import EncodedQuestion, batches, evaluating, reads_tries, score_batch
from .knob import Knob, knob_of


def answer_log_probs(
    model: nn.Module,
    encoded: Sequence[EncodedQuestion],
    strengths: Sequence[float],
    progress: Callable[[int], Any] = lambda n: None,
    batch_tokens: int = 1024,
    *,
    knob: Optional[Knob] = None,
    rewritten: Optional[Sequence[EncodedQuestion]] = None,
) -> tuple[dict[float, np.ndarray], dict[float, np.ndarray]]:
    """
    What a model says at several strengths, batch by batch, so that no distribution is kept.

    Args:
        model (`nn.Module`): a model; its strength is restored afterwards.
        encoded (`Sequence[EncodedQuestion]`): questions.
        strengths (`Sequence[float]`): the strengths.
        progress (`Callable`): called with the number of questions done.
        batch_tokens (`int`, defaults to 1024): tokens per batch.
        knob (`Knob`, *optional*): what is turned; default [`knob_of`] the model.
        rewritten (`Sequence[EncodedQuestion]`, *optional*): the questions as the knob asks them at any other strength
            than 0; default as they are.

    Returns:
        By strength, the log-probabilities of the answers, shape `(questions, answers)`, and the exact KL to strength 0
        of the next-token distribution where the answer is decided, shape `(questions,)`; strength 0 is always there.
    """
    knob = knob_of(model) if knob is None else knob
    order = list(dict.fromkeys([0.0, *strengths]))
    asked = {w: encoded if w == 0 or rewritten is None else rewritten for w in order}
    widest = max(len(question.answers) for question in encoded)
    said = {w: np.full((len(encoded), widest), -np.inf) for w in order}
    kl = {w: np.zeros(len(encoded)) for w in order}
    with evaluating(model), torch.no_grad():
        packed = True
        for w in {0.0, max(order, key=abs)}:  # an adapter such as a soft prompt may not take what its base takes
            with knob.at(w):
                packed = packed and reads_tries(model, asked[w])
        for numbers in batches(encoded, batch_tokens):
            base = torch.empty(0)
            for w in order:
                with knob.at(w):
                    scores = score_batch(model, [asked[w][number] for number in numbers], packed)
                said[w][numbers, : scores.answers.shape[1]] = scores.answers.double().cpu().numpy()
                if w == 0:
                    base = scores.decision
                else:
                    kl[w][numbers] = kl_divergence(scores.decision, base).cpu().numpy()
                progress(len(numbers))
    return said, kl
