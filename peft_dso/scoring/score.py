"""Log-probabilities of given answers, in one forward pass per prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from .encode import EncodedQuestion, PicturedQuestion
from .forward import Layout, Scores, lay_out, lay_out_pictured, score_layout
from .pack import batches, pack
from .reading import check_readable, evaluating
from .tries import reads_tries


@dataclass
class Prepared:
    """
    A batch laid out once, to be scored any number of times: at several strengths, with and without an adapter, again
    in the next epoch.

    Args:
        layouts (`list[Layout]`): of the questions of text, and of those with pictures, one forward pass each.
        order (`torch.Tensor`, *optional*): which of the laid out questions each question is; default as they stand.
    """

    layouts: list[Layout]
    order: Optional[torch.Tensor] = None


def prepare(questions: Sequence[EncodedQuestion], packed: bool) -> Prepared:
    """
    Lay one batch out, in which some questions may have pictures.

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.
        packed (`bool`): whether to lay text out as tries.

    Returns:
        `Prepared`: on the CPU; the pictures are prepared.
    """
    pictured = [(n, q) for n, q in enumerate(questions) if isinstance(q, PicturedQuestion)]
    text = [(n, q) for n, q in enumerate(questions) if not isinstance(q, PicturedQuestion)]
    layouts: list[Layout] = []
    if text:
        chosen = [q for _, q in text]
        layouts.append(pack(chosen) if packed else lay_out(chosen))
    if pictured:
        layouts.append(lay_out_pictured([q for _, q in pictured]))
    if len(layouts) == 1:
        return Prepared(layouts)
    return Prepared(layouts, torch.tensor([n for n, _ in (*text, *pictured)]).argsort())


def score_prepared(model: nn.Module, prepared: Prepared) -> Scores:
    """
    Score a batch that is laid out; differentiable.

    Args:
        model (`nn.Module`): a causal language model, or a vision-language model.
        prepared (`Prepared`): from [`prepare`].

    Returns:
        `Scores`: in the order of the questions.
    """
    parts = [score_layout(model, layout) for layout in prepared.layouts]
    if prepared.order is None:
        return parts[0]
    together = Scores.joined(parts)
    return together[prepared.order.to(together.answers.device)]


def score_batch(model: nn.Module, questions: Sequence[EncodedQuestion], packed: bool) -> Scores:
    """
    Lay one batch out and score it: [`prepare`] and [`score_prepared`].

    Args:
        model (`nn.Module`): a causal language model, or a vision-language model.
        questions (`Sequence[EncodedQuestion]`): at least one.
        packed (`bool`): whether to lay text out as tries.

    Returns:
        `Scores`: in the order of the questions.
    """
    return score_prepared(model, prepare(questions, packed))


def score(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    *,
    packed: Optional[bool] = None,
    batch_tokens: int = 1024,
) -> Iterator[tuple[list[int], Scores]]:
    """
    Score questions batch by batch without gradient.

    Args:
        model (`nn.Module`): a causal language model.
        questions (`Sequence[EncodedQuestion]`): at least one.
        packed (`bool`, *optional*): whether to lay them out as tries; default: whether the model reads tries.
        batch_tokens (`int`): tokens per batch.

    Yields:
        The numbers of the questions of a batch and their `Scores`.

    Raises:
        ValueError: there is no question, or the model cannot be asked one of them (see [`check_readable`]); before
            anything is scored.
    """
    if not questions:
        raise ValueError("There is no question to score.")
    check_readable(model, questions)
    if packed is None:
        packed = reads_tries(model, questions)
    for numbers in batches(questions, batch_tokens):
        prepared = prepare([questions[number] for number in numbers], packed)
        with evaluating(model), torch.no_grad():  # and not where the caller goes on
            scores = score_prepared(model, prepared)
        yield numbers, scores
