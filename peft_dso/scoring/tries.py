"""Whether a model reads tries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import nn

from .encode import EncodedQuestion, PicturedQuestion
from .forward import score_packed, score_plain
from .pack import pack
from .reading import check_readable, compute_dtype, evaluating, plain_model
from .terms import terms_of


# Tokens of the stem and of each branch of the trie that is tried: more than a convolution before a state spans.
_STEM, _BRANCH = 32, 6


def reads_tries(model: nn.Module, questions: Sequence[EncodedQuestion], half: Optional[bool] = None) -> bool:
    """
    Whether packing gives what the prompts alone give: tried, because whether an architecture honours a mask and
    positions of one's own (a rotary model does, ALiBi and a recurrent state do not) cannot be read off its config.
    Tried are some of the questions, the longest with its answer among them (a sliding window), and a trie that
    branches, whatever the questions: what is found holds for any that are no longer. In evaluation mode and without
    gradient, whatever the caller's mode. Of several processes that ask a model together one decides for all.

    Args:
        model (`nn.Module`): a causal language model.
        questions (`Sequence[EncodedQuestion]`): the questions to come; those with pictures are passed over.
        half (`bool`, *optional*): whether the model computes in half precision; default whether its weights are in it.

    Returns:
        `bool`: `False` also when the model refuses such a mask, and where there is no question without a picture.

    Raises:
        ValueError: the model cannot be asked one of the questions (see [`check_readable`]), or an answer has several
            tokens and the model is not causal: it would read the answer before it is asked for it.
    """
    questions = [question for question in questions if not isinstance(question, PicturedQuestion)]
    if not questions:
        return False
    check_readable(model, questions)
    if half is None:
        half = compute_dtype(model) not in (torch.float32, torch.float64)
    prompts = _tried(questions)
    tried = [EncodedQuestion(prompt, ()) for prompt in prompts]
    with evaluating(model), torch.no_grad():
        plain = score_plain(model, tried).decision
        noise = _noise(model, tried, plain) if half else plain.new_zeros(())
        spread = (plain - plain.mean(0)).square().mean().sqrt()
        # In half precision rounding alone makes up to 0.09 of what prompts differ on real models, more or less with
        # the number of threads, as does each prompt without the others; a mask or positions that are not honoured make
        # 0.3 and more there, and less only where there is no noise to speak of.
        allowed = 1e-5 + ((0.05 * spread + 4 * noise).clamp(max=0.3 * spread) if half else 0.001 * spread)
        try:
            if _error(score_packed(model, pack(tried)).decision, plain) <= allowed:
                return True
        except torch.OutOfMemoryError:
            raise
        except Exception:  # of whatever kind: the mask has a form that is none of this model's
            pass
        if any(len(terms_of(question).places) > 1 for question in questions):
            # Two tokens shorter than they may be, and followed by one. More than the other prompts of a batch change:
            # quantised models round by what is largest in it.
            short = [EncodedQuestion(prompt[: max(1, len(prompt) - 2)], ()) for prompt in prompts]
            followed = [EncodedQuestion(question.prompt, ((prompts[-1][-2:],),)) for question in short]
            plain = score_plain(model, short).decision
            changed = _error(score_plain(model, followed).decision, plain)
            if changed > torch.maximum(0.03 * spread, 4 * _noise(model, short, plain)):
                raise ValueError(
                    f"{type(plain_model(model)).__name__} is no causal language model: what follows a token changes "
                    "what is said there, so that answers of several tokens cannot be read. Give a causal one (a BERT "
                    "needs is_decoder=True), or answers of one token."
                )
    return False


def _noise(model: nn.Module, questions: Sequence[EncodedQuestion], plain: torch.Tensor) -> torch.Tensor:
    """By how much prompts that are asked one by one differ from the same in a batch."""
    return _error(torch.cat([score_plain(model, [question]).decision for question in questions]), plain)


def _error(found: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
    """The largest root mean square by which the distributions of a prompt differ."""
    return (found - plain).square().mean(1).sqrt().amax()


def _tried(questions: Sequence[EncodedQuestion]) -> list[tuple[int, ...]]:
    """Prompts of some of the questions, and prompts that part after a common stem."""
    by_prompt = sorted(question.prompt for question in questions)
    longest = max((q.prompt + max(terms_of(q).places, key=len) for q in questions), key=len)
    known: dict[int, None] = {}
    for question in questions:
        known.update(dict.fromkeys((*question.prompt, *(t for place in terms_of(question).places for t in place))))
    tokens = list(known)[-2 * _BRANCH :]  # no marks of the beginning, where there are others
    if len(tokens) == 1:
        tokens.append(tokens[0] - 1 if tokens[0] else 1)
    ring = tokens * _BRANCH
    first, second = tuple(ring[:_BRANCH]), tuple(ring[1 : _BRANCH + 1])
    stem = longest[: max(1, min(_STEM, len(longest) - _BRANCH))]
    branches = [stem + first, stem + second[:2], stem + second]
    return list(dict.fromkeys([by_prompt[0], by_prompt[-1], longest, *branches]))
