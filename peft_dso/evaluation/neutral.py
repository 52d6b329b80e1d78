"""What a strength does to text that has nothing to do with the questions: KL per token, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from ..objective.penalties import kl_divergence
from ..scoring import evaluating, first_tokens
from .answered import NeutralCost
from .knob import Knob, knob_of


LONGEST = 256  # tokens of a text that are read: short texts are meant


def _behind(
    knob: Knob, tokenizer: Any, text: str, ids: tuple[int, ...], positions: float
) -> Optional[tuple[int, ...]]:
    """
    The tokens of a text as the knob asks it, which must end with the text's; `None` where they do not, or are more
    than the model has positions.
    """
    rewrite = getattr(knob, "rewrite", None)
    if rewrite is None:
        return ids
    row: dict[str, Any] = {"prompt": text, "occupation": "", "answers": [], "meanings": [], "right": None}
    try:
        prompt = rewrite(row)["prompt"]
    except (TypeError, ValueError, LookupError, AttributeError):  # it is made for questions alone
        return None
    if not isinstance(prompt, str):
        return None
    rewritten = tuple(tokenizer(prompt)["input_ids"])
    cut = len(tokenizer(text)["input_ids"]) - len(ids)
    rewritten = rewritten[: len(rewritten) - cut]
    return rewritten if rewritten[1 - len(ids) :] == ids[1:] and len(rewritten) <= positions else None


def _log_probs(model: nn.Module, batch: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[torch.Tensor]:
    """
    Log-probabilities of the last `length - 1` tokens' distributions of each text, shape `(length - 1, vocabulary)`.
    Padded on the right, where no token sees it.
    """
    device = next(model.parameters()).device
    longest = max(map(len, batch))
    input_ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    logits = logits[:, logits.shape[1] - longest :]  # behind the virtual tokens of a soft prompt
    return [
        logits[row, len(ids) - length : len(ids) - 1].float().log_softmax(-1)
        for row, (ids, length) in enumerate(zip(batch, lengths, strict=True))
    ]


def neutral_costs(
    model: nn.Module,
    processor: Any,
    texts: Sequence[str],
    strengths: Sequence[float],
    *,
    knob: Optional[Knob] = None,
    batch_tokens: int = 512,
    progress: Callable[[int], Any] = lambda n: None,
) -> Optional[dict[float, NeutralCost]]:
    """
    Compare a model at several strengths with itself at strength 0, on every token of some texts.

    Args:
        model (`nn.Module`): a model; its strength is restored afterwards.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        texts (`Sequence[str]`): the first 256 tokens are read; one of a single token predicts nothing and is left out.
        strengths (`Sequence[float]`): the strengths.
        knob (`Knob`, *optional*): what they turn; default [`knob_of`] the model. Of a prompt: the text behind it,
            against the text alone.
        batch_tokens (`int`, defaults to 512): tokens per batch; the distributions of all of them are held.
        progress (`Callable`): called with the number of texts done.

    Returns:
        `dict[float, NeutralCost]`: by strength, of the texts that count; `None` where the knob's rewriting puts no
        prompt before a text.

    Raises:
        ValueError: there is no text of two tokens.
    """
    if not texts:
        raise ValueError("There is no neutral text.")
    knob = knob_of(model) if knob is None else knob
    tokenizer = getattr(processor, "tokenizer", processor)
    config: Any = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    read = [(text, first_tokens(tokenizer, text, int(min(LONGEST, positions)))) for text in texts]
    counted = [(text, ids) for text, ids in read if len(ids) > 1]
    progress(len(texts) - len(counted))
    if not counted:
        raise ValueError(
            f"None of the {len(texts)} neutral texts has two tokens, such as {texts[0]!r}: give longer ones."
        )
    texts, alone = zip(*counted, strict=True)
    asked = [_behind(knob, tokenizer, text, ids, positions) for text, ids in zip(texts, alone, strict=True)]
    behind = [ids for ids in asked if ids is not None]
    if len(behind) < len(texts) and any(strengths):
        return None
    sequences = {w: alone if w == 0 else behind for w in {0.0, *strengths}}
    sums = {w: np.zeros((3, len(texts))) for w in strengths}
    order = sorted(range(len(texts)), key=lambda n: len(alone[n]))
    lengths = [len(ids) for ids in alone]
    with evaluating(model), torch.no_grad():
        while order:
            fit = max(1, batch_tokens // lengths[order[-1]])
            numbers, order = order[-fit:], order[:-fit]

            def distributions(w: float, numbers: list[int] = numbers) -> list[torch.Tensor]:
                with knob.at(w):
                    return _log_probs(model, [sequences[w][n] for n in numbers], [lengths[n] for n in numbers])

            base = distributions(0.0)
            for w in strengths:
                for n, p, q in zip(numbers, base if w == 0 else distributions(w), base, strict=True):
                    at = torch.arange(len(p)), torch.tensor(alone[n][1:])
                    kl = kl_divergence(p, q).sum() if w else torch.zeros(())
                    sums[w][:, n] = [float(kl), float(-p[at].sum()), float(-q[at].sum())]
            progress(len(numbers))
    tokens = np.array(lengths, dtype=float) - 1
    return {w: NeutralCost(kl, loss, before, tokens) for w, (kl, loss, before) in sums.items()}
