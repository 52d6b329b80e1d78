"""The fair distribution nearest to the base, in closed form."""

from __future__ import annotations

import torch


def group_log_masses(log_p: torch.Tensor, group: torch.Tensor, count: int) -> torch.Tensor:
    """
    Log-probability of each group.

    Args:
        log_p (`torch.Tensor`): log-probabilities of the answers, shape `(questions, answers)`, -inf where a question
            has fewer.
        group (`torch.Tensor`): index of each answer's group, shape `(questions, answers)`.
        count (`int`): number of groups k.

    Returns:
        `torch.Tensor`: shape `(questions, k)`, -inf for a group that no answer of the question means.
    """
    columns = [log_p.masked_fill(group != g, -torch.inf) for g in range(count)]
    # A group without an answer must not send NaN back through logsumexp.
    return torch.stack([_logsumexp(column) for column in columns], -1)


def _logsumexp(x: torch.Tensor) -> torch.Tensor:
    there = torch.isfinite(x).any(-1)
    safe = torch.where(there[:, None], x, torch.zeros_like(x))
    return torch.where(there, safe.logsumexp(-1), torch.full_like(there, -torch.inf, dtype=x.dtype))


def nearest_fair(log_masses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What it costs at least to be fair without saying the answers less often, question by question, and the reward that
    does it.

    Of all distributions in which the n groups of a question are equally likely and keep their sum M, the one with the
    least KL(fair || base) leaves all else in proportion: each group has M / n, and with masses m_1..m_n before,

        KL(fair || base) = M (ln(M / n) - mean_g ln m_g),

    which is M (-ln(4 p q) / 2) for two groups of shares p and q. It is what maximises E[r] - KL(. || base) for the
    reward r(g) = ln(M / n) - ln m_g of an answer in group g: the optimum of the paper's objective (section 4) in which
    fairness is the constraint and the reward its multiplier. (A distribution that may say the answers less often comes
    a little nearer; it would be paid for by abstaining.)

    Args:
        log_masses (`torch.Tensor`): from the base, see [`group_log_masses`]; -inf for a group that is not offered.

    Returns:
        The least KL in nats, shape `(questions,)`, and the reward of each group, shape `(questions, k)`, 0 for one
        that is not offered.
    """
    offered = torch.isfinite(log_masses)
    n = offered.sum(-1, keepdim=True).clamp(min=1)
    finite = torch.where(offered, log_masses, torch.zeros_like(log_masses))
    mean = finite.sum(-1, keepdim=True) / n
    mass = (finite.exp() * offered).sum(-1, keepdim=True)
    fair = (mass.clamp(min=torch.finfo(mass.dtype).tiny) / n).log()
    reward = torch.where(offered, fair - finite, torch.zeros_like(finite))
    least = (mass * (fair - mean)).squeeze(-1) * offered.any(-1)
    return least.clamp(min=0), reward
