"""Log-probabilities of given answers, in one forward pass per prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional

import torch
from torch import nn

from .encode import EncodedQuestion, PicturedQuestion
from .forward import Layout, Scores, _compute_dtype, lay_out, lay_out_pictured, score_layout, score_packed, score_plain
from .pack import batches, pack


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
    widest = max(part.answers.shape[1] for part in parts)
    answers = [nn.functional.pad(p.answers, (0, widest - p.answers.shape[1]), value=-torch.inf) for p in parts]
    together = Scores(
        torch.cat(answers),
        torch.cat([part.decision for part in parts]),
        torch.cat([part.abstentions for part in parts]),
    )
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


@torch.no_grad()
def reads_tries(model: nn.Module, questions: Sequence[EncodedQuestion], tolerance: Optional[float] = None) -> bool:
    """
    Whether packing gives what the prompts alone give: tried on a few of the questions, because whether an architecture
    honours a mask and positions of one's own (a rotary model does, ALiBi does not) cannot be read off its config.

    Args:
        model (`nn.Module`): a causal language model.
        questions (`Sequence[EncodedQuestion]`): the questions to come.
        tolerance (`float`, *optional*): allowed difference of the log-probabilities, as a share of how much they
            differ between the questions (root mean squares); default 0.01, and 0.1 for a model in half precision.

    Returns:
        `bool`: `False` also when the model refuses such a mask.
    """
    questions = [q for q in questions if not isinstance(q, PicturedQuestion)]
    if not questions:
        return False
    if tolerance is None:
        tolerance = 0.01 if _compute_dtype(model) == torch.float32 else 0.1
    by_prompt = sorted(questions, key=lambda q: q.prompt)
    few = [*by_prompt[:3], by_prompt[-1], max(questions, key=lambda q: len(q.prompt))]
    try:
        packed = score_packed(model, pack(few)).decision
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        return False
    plain = score_plain(model, [q.prompt_only() for q in few]).decision
    spread = (plain - plain.mean(0)).square().mean().sqrt()
    error = (packed - plain).square().mean().sqrt()
    return bool(error <= tolerance * spread + 1e-5)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


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
        ValueError: there is no question.
    """
    if not questions:
        raise ValueError("There is no question to score.")
    with evaluating(model), torch.no_grad():
        if packed is None:
            packed = reads_tries(model, questions)
        for numbers in batches(questions, batch_tokens):
            chosen = [questions[number] for number in numbers]
            yield numbers, score_batch(model, chosen, packed)
