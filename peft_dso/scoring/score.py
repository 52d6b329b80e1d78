"""Log-probabilities of given answers, in one forward pass per prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Optional

import torch
from torch import nn

from .encode import EncodedQuestion, PicturedQuestion
from .forward import Scores, _compute_dtype, score_packed, score_pictured, score_plain
from .pack import batches, pack


def score_batch(model: nn.Module, questions: Sequence[EncodedQuestion], packed: bool) -> Scores:
    """
    Score one batch, in which some questions may have pictures.

    Args:
        model (`nn.Module`): a causal language model, or a vision-language model.
        questions (`Sequence[EncodedQuestion]`): at least one.
        packed (`bool`): whether to lay text out as tries.

    Returns:
        `Scores`: in the order of the questions.
    """
    pictured = [n for n, q in enumerate(questions) if isinstance(q, PicturedQuestion)]
    text = [n for n, q in enumerate(questions) if not isinstance(q, PicturedQuestion)]
    parts: list[Scores] = []
    if text:
        chosen = [questions[n] for n in text]
        parts.append(score_packed(model, pack(chosen)) if packed else score_plain(model, chosen))
    if pictured:
        parts.append(score_pictured(model, [questions[n] for n in pictured]))  # type: ignore[misc]
    if len(parts) == 1:
        return parts[0]
    widest = max(part.answers.shape[1] for part in parts)
    answers = torch.cat(
        [nn.functional.pad(p.answers, (0, widest - p.answers.shape[1]), value=-torch.inf) for p in parts]
    )
    back = torch.tensor(text + pictured).argsort()
    return Scores(answers[back], torch.cat([part.decision for part in parts])[back])


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
    plain = score_plain(model, [EncodedQuestion(q.prompt, ()) for q in few]).decision
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
