"""What holds the steering back: the l1 term's proximal step and the multiplier that keeps the KL under its cap."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Union

import torch


@torch.no_grad()
def soft_threshold_(parameters: Iterable[torch.Tensor], amount: Union[float, torch.Tensor]) -> None:
    """
    Proximal step of `amount * |x|_1`, in place: x -> sign(x) max(|x| - amount, 0). Unlike a gradient of the norm it
    gives exact zeros.

    Args:
        parameters (`Iterable[torch.Tensor]`): any shapes.
        amount (`float` or `torch.Tensor`): learning rate times the coefficient of the l1 term, at least 0; one for
            all entries, or of the parameters' shape.
    """
    for x in parameters:
        x.copy_(x.sign() * (x.abs() - amount).clamp(min=0))


@torch.no_grad()
def sparsity(vectors: Iterable[tuple[torch.Tensor, ...]]) -> tuple[float, float]:
    """
    How sparse the pairs of the sites are.

    Args:
        vectors (`Iterable[tuple[torch.Tensor, ...]]`): per site its slope and shift, each of shape `(d,)`.

    Returns:
        The share of neurons (features of a site) whose slope and shift are exactly zero, and |a|_1 + |b|_1 over all.

    Raises:
        ValueError: there is no site, or this process does not hold its values (offloaded to the meta device, or of
            shape `(0,)`, as DeepSpeed's ZeRO-3 leaves a partitioned parameter).
    """
    # Of a model that FSDP shards each process holds a part (DTensor).
    sites = [[v.full_tensor() if hasattr(v, "full_tensor") else v for v in site] for site in vectors]
    if not sites:
        raise ValueError("There is no steered site.")
    if any(v.is_meta or not v.numel() for site in sites for v in site):
        raise ValueError(
            "A slope or a shift has no values here: it is offloaded or partitioned over processes. Gather it first "
            "(deepspeed.zero.GatheredParameters), or train and measure without ZeRO-3 and offloading."
        )
    device = sites[0][0].device
    counts = []
    for site in sites:
        zeros, l1 = torch.stack([v == 0 for v in site]).all(0).sum(), torch.stack([v.abs().sum() for v in site]).sum()
        counts.append(torch.stack([zeros, l1]).to(device))
    # One wait for the device, whatever the number of sites; added up in double precision, which not every device has.
    still, total = (math.fsum(column) for column in zip(*torch.stack(counts).cpu().tolist(), strict=True))
    return still / sum(site[0].numel() for site in sites), total


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """
    KL(p || q) of whole distributions, exact.

    Args:
        log_p (`torch.Tensor`): log-probabilities, shape `(..., vocabulary)`.
        log_q (`torch.Tensor`): log-probabilities of the same shape.

    Returns:
        `torch.Tensor`: shape `(...)`, in nats. What p never says (log-probability -inf) counts nothing.
    """
    return (log_p.exp() * (log_p - log_q).masked_fill(log_p == -torch.inf, 0)).sum(-1)


def answers_kl(steered: Any, base: Any) -> torch.Tensor:
    """
    KL(steered || base) of what is said to each question, as far as it decides the answer: of the whole distribution of
    the next token and, behind every beginning of a form, of the forms that it may become and of anything else, each
    weighted with how often the steered model comes there (the chain rule of relative entropy).

    Args:
        steered (`Scores`): of some questions.
        base (`Scores`): of the same questions, on the same device.

    Returns:
        `torch.Tensor`: shape `(questions,)`, in nats.
    """
    events = min(steered.branches.shape[1], base.branches.shape[1])  # what is beyond is padding
    given, together = steered.branches[:, :events].unbind(-1)
    gap = (given - base.branches[:, :events, 0]).masked_fill(together == -torch.inf, 0)
    kl = kl_divergence(steered.decision, base.decision)
    return kl + (together.exp() * gap).sum(-1)


def given_or_not(log_p: torch.Tensor) -> torch.Tensor:
    """Log-probabilities that one of some answers is given, and that none is: shape `(n, answers)` to `(n, 2)`."""
    given = log_p.logsumexp(-1)
    none = (1 - given.exp()).clamp(min=torch.finfo(given.dtype).eps).log()  # rounding may leave nothing, or less
    return torch.stack([given, none], -1)


def lost_kl(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """
    KL of whether something is said, where p says it less often than q does, else 0: no gain is held back.

    Args:
        log_p (`torch.Tensor`): log-probability of it under the steered model, shape `(n,)`.
        log_q (`torch.Tensor`): that under the base, of the same shape.

    Returns:
        `torch.Tensor`: shape `(n,)`, in nats.
    """
    kl = kl_divergence(*(given_or_not(x.unsqueeze(-1)) for x in (log_p, log_q)))
    return kl.masked_fill(log_p >= log_q, 0)


def updated_multiplier(multiplier: float, kl: float, max_kl: float, rate: float) -> float:
    """
    One step of dual ascent on KL <= max_kl: the multiplier rises while the KL is above the cap and falls below it.

    Args:
        multiplier (`float`): the present one, at least 0.
        kl (`float`): measured KL(steered || base), in nats.
        max_kl (`float`): the cap, above 0.
        rate (`float`): change per step and per unit of relative violation (kl / max_kl - 1), which is cut off at 1.

    Returns:
        `float`: the new multiplier, at least 0.
    """
    return max(0.0, multiplier + rate * min(kl / max_kl - 1, 1.0))
