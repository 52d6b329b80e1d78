"""The expectation of the reward over answers that are named: exact, and with it the policy gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch

from .fairness import group_log_masses, nearest_fair
from .rewards import FairnessReward, group_rewards


# What the base hardly ever names would be tilted without end. Nats; e^-6 is a share of 0.0025 against 0.9975.
MOST_TILT = 6.0  # of one group against another


class EnumeratedReward:
    """
    E[r(y)] over the named answers of a question (paper, section 4). Its gradient with the rewards held fixed is what
    the policy gradient estimates from samples.

    Args:
        groups (`Sequence[str]`): the meanings that answers can have.
        temperatures (`Sequence[float]`): at which the answers are to be fair; the expectation is the mean over them.
        abstain_reward (`float`, *optional*): reward of any other answer; `None` looks at the named ones only, whose
            probabilities count as if they summed to 1.
        smoothing (`float`): see [`group_rewards`].
        memory (`float`): see [`FairnessReward`].
        question_share (`float`): share of the reward taken from each question's own imbalance.
    """

    def __init__(
        self,
        groups: Sequence[str],
        temperatures: Sequence[float] = (1.0,),
        abstain_reward: Optional[float] = None,
        smoothing: float = 0.1,
        memory: float = 0.0,
        question_share: float = 0.0,
    ) -> None:
        self.groups = tuple(groups)
        self.temperatures = list(temperatures)
        self.abstain_reward = abstain_reward
        self.smoothing = smoothing
        self.question_share = question_share
        # One for each temperature, which has majorities of its own. Without weights: whoever draws the questions shows
        # each occupation as often as any other.
        self.counts = [FairnessReward(groups, abstain_reward, smoothing, memory) for _ in self.temperatures]

    def group_index(self, rows: Sequence[Mapping[str, Any]], like: torch.Tensor) -> torch.Tensor:
        """Index of each answer's group, of the shape and on the device of `like`, 0 where there is no answer."""
        group = torch.zeros(*like.shape, dtype=torch.long)
        for i, row in enumerate(rows):
            for j, meaning in enumerate(row["meanings"]):
                group[i, j] = self.groups.index(meaning)
        return group.to(like.device)

    def _offered(self, rows: Sequence[Mapping[str, Any]], like: torch.Tensor) -> torch.Tensor:
        """Which groups each question offers, bool, shape `(questions, k)`, on the device of `like`."""
        offered = [[group in row["meanings"] for group in self.groups] for row in rows]
        return torch.tensor(offered, dtype=torch.bool, device=like.device).reshape(len(rows), len(self.groups))

    def _at(self, log_p: torch.Tensor, temperature: float) -> torch.Tensor:
        """What the answers' probabilities count as at a temperature, shape `(questions, answers)`."""
        p = (log_p / temperature).softmax(-1)
        return p if self.abstain_reward is None else log_p.exp().sum(-1, keepdim=True) * p

    def observe(self, rows: Sequence[Mapping[str, Any]], log_p: torch.Tensor) -> None:
        """Count what the model says (log-probabilities, shape `(questions, answers)`) towards the majorities."""
        group = self.group_index(rows, log_p)
        offered = self._offered(rows, log_p)
        for temperature, counted in zip(self.temperatures, self.counts, strict=True):
            self._count(rows, group, self._at(log_p.detach(), temperature), offered, counted)

    def _count(
        self,
        rows: Sequence[Mapping[str, Any]],
        group: torch.Tensor,
        p: torch.Tensor,
        offered: torch.Tensor,
        counted: FairnessReward,
    ) -> torch.Tensor:
        """Count answers of probabilities `p`; returns what each group gets of each question, `(questions, k)`."""
        by_group = p.new_zeros(len(rows), len(self.groups)).scatter_add(1, group, p)
        said = [(row["occupation"], values) for row, values in zip(rows, by_group.tolist(), strict=True)]
        counted.observe(said, offered.tolist())
        return by_group

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], log_p: torch.Tensor, base: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """
        The expected reward of each question; what the model says is counted first. Questions whose answers all mean
        one group count nothing and earn 0. Of a pair with places (see [`over_pairs`]) each question's own answers are
        fair, at temperature 1, as the base's would be without their lean: what it prefers for a place alone stays, and
        no preference that it did not have makes them fair. At lower temperatures, where a small preference decides
        nearly all, their mean is to be fair.

        Args:
            rows (`Sequence[Mapping]`): ambiguous questions.
            log_p (`torch.Tensor`): log-probabilities of their answers, shape `(questions, answers)`, -inf where a
                question has fewer.
            base (`torch.Tensor`, *optional*): those of the base; without them the mean of a pair is to be fair at
                temperature 1 too.

        Returns:
            `torch.Tensor`: shape `(questions,)`, differentiable in `log_p`.
        """
        group = self.group_index(rows, log_p)
        offered = self._offered(rows, log_p)
        expected = log_p.new_zeros(len(rows))
        for temperature, counted in zip(self.temperatures, self.counts, strict=True):
            p = self._at(log_p, temperature)
            own = self._count(rows, group, p.detach(), offered, counted)
            # In the precision of the probabilities.
            shares = p.new_tensor([counted.shares(row["occupation"]) for row in rows])
            fair = p.new_tensor([counted.fair(row["occupation"]) for row in rows])
            reward = group_rewards(shares, self.smoothing, fair)
            if self.question_share:
                own = own / own.sum(-1, keepdim=True).clamp(min=torch.finfo(own.dtype).tiny)
                even = offered / offered.sum(-1, keepdim=True)
                if base is None or temperature < 1:
                    own = over_pairs(rows, own)
                else:
                    even = self._keeping_places(rows, base, group, even)
                own = group_rewards(own, self.smoothing, even)
                reward = torch.lerp(reward, own, self.question_share)
            expected = expected + (p * reward.gather(1, group)).sum(-1) / len(self.temperatures)
        if self.abstain_reward is not None:
            expected = expected + self.abstain_reward * (1 - log_p.exp().sum(-1))
        return expected * (offered.sum(-1) > 1)

    def _keeping_places(
        self,
        rows: Sequence[Mapping[str, Any]],
        base: torch.Tensor,
        group: torch.Tensor,
        even: torch.Tensor,
    ) -> torch.Tensor:
        """`even`, but of pairs with places the shares of the fair distribution nearest to the base, `(rows, k)`."""
        _, own = nearest_fair(group_log_masses(base, group, len(self.groups)))
        tilted = base + over_pairs(rows, own).gather(1, group)
        shares = torch.zeros_like(even, dtype=base.dtype).scatter_add(1, group, tilted.softmax(-1))
        placed = [row.get("pair") is not None and row.get("first") is not None for row in rows]
        return torch.where(torch.tensor(placed, device=base.device).unsqueeze(-1), shares, even)

    def tilt(
        self, rows: Sequence[Mapping[str, Any]], log_p: torch.Tensor, base: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What turns the KL to the base into the KL to the fair distribution nearest to it (see [`nearest_fair`]), up to
        a constant: KL(steered || base) - E[tilt].

        Args:
            rows (`Sequence[Mapping]`): ambiguous questions.
            log_p (`torch.Tensor`): the steered model's log-probabilities, shape `(questions, answers)`.
            base (`torch.Tensor`): those of the base.

        Returns:
            E[tilt], one group against another tilted by at most 6 nats, and the least KL that fairness of each
            question costs, in nats, each of shape `(questions,)`. Of a pair with places the tilt is one for all of its
            questions, and costs less.
        """
        group = self.group_index(rows, log_p)
        masses = group_log_masses(base, group, len(self.groups))
        least, own = nearest_fair(masses)
        reward = over_pairs(rows, own)
        offered = torch.isfinite(masses).sum(-1, keepdim=True).clamp(min=1)
        reward = (reward - reward.sum(-1, keepdim=True) / offered).clamp(-MOST_TILT / 2, MOST_TILT / 2)
        # With the reward of a pair, too, the answers keep their sum; where none is offered there is nothing to keep.
        change = (masses + reward).logsumexp(-1, keepdim=True) - masses.logsumexp(-1, keepdim=True)
        reward = reward - change.nan_to_num()
        return (log_p.exp() * reward.gather(1, group)).sum(-1), least


def over_pairs(rows: Sequence[Mapping[str, Any]], values: torch.Tensor) -> torch.Tensor:
    """
    Values of questions, shape `(questions, k)`, as those of their pair where the answers have a place (`first`): the
    mean over the groups that stand first of the means over the rows in which each does. What a model prefers for its
    place alone is no stereotype. Rows of one pair count together if they are about one occupation and offer the same
    groups.
    """
    pairs: list[Any] = []
    sides: list[Any] = []
    for number, row in enumerate(rows):
        pair, first = row.get("pair"), row.get("first")
        if pair is None or first is None:
            pairs.append(number)
            sides.append(number)
        else:
            pairs.append((pair, row["occupation"], frozenset(row["meanings"])))
            sides.append((pairs[-1], row["meanings"][first]))
    seen, numbers = Counter(sides), {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    index = torch.tensor([numbers[pair] for pair in pairs], dtype=torch.long, device=values.device)
    weight = values.new_tensor([1 / seen[side] for side in sides]).unsqueeze(-1)  # each side of a pair weighs 1
    sums, weights = (x.new_zeros(len(numbers), x.shape[1]).index_add(0, index, x) for x in (weight * values, weight))
    return (sums / weights)[index]
