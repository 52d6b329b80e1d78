"""
The fairness reward: an answer is paid for moving the model towards the fair share of its occupation.

The paper's reward (section 4) is -1 for the status that the current model gives most often for the occupation and +1
otherwise. Here it is written for shares p_1..p_k of k groups: r(g) = -sign(p_g - 1/k), which for k = 2 is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, Optional

import torch
from accelerate.utils import gather_object
from transformers.utils import logging

from ..answers import read_row


logger = logging.get_logger(__name__)

# An occupation, what each group got (count or probability), and what each would have got if that were fair.
Said = tuple[str, Sequence[float], Sequence[float]]


def group_rewards(shares: torch.Tensor, smoothing: float = 0.0, fair: Optional[torch.Tensor] = None) -> torch.Tensor:
    """
    The reward of an answer by its group.

    Args:
        shares (`torch.Tensor`): shares of the groups among the answers for an occupation, shape `(..., k)`, summing to
            1 over the groups.
        smoothing (`float`, defaults to 0): imbalance below which the reward shrinks in proportion, in [0, 2]; 0 gives
            the sign. The imbalance of two groups is p_pro - p_anti.
        fair (`torch.Tensor`, *optional*): the fair shares, of that shape; default 1/k.

    Returns:
        `torch.Tensor`: shape `(..., k)`, in [-1, 1].
    """
    # For two groups: p_pro - p_anti and its negative.
    deviation = 2 * (shares - (1 / shares.shape[-1] if fair is None else fair))
    return -deviation.sign() if smoothing == 0 else -(deviation / smoothing).clamp(-1, 1)


def occupation_shares(probabilities: torch.Tensor, occupations: torch.Tensor, count: int) -> torch.Tensor:
    """
    Shares of the groups per occupation.

    Args:
        probabilities (`torch.Tensor`): per question the probability (or count) of each group, shape `(questions, k)`.
        occupations (`torch.Tensor`): index of each question's occupation, shape `(questions,)`.
        count (`int`): number of occupations.

    Returns:
        `torch.Tensor`: shape `(count, k)`; 1/k where nothing was answered.
    """
    sums = probabilities.new_zeros(count, probabilities.shape[1]).index_add(0, occupations, probabilities)
    total = sums.sum(-1, keepdim=True)
    return torch.where(total > 0, sums / total.clamp(min=torch.finfo(sums.dtype).tiny), 1 / sums.shape[1])


def answer_shares(answers: Sequence[tuple[str, Sequence[float]]]) -> dict[str, list[float]]:
    """
    Shares of the groups per occupation of some answers.

    Args:
        answers (`Sequence[tuple[str, Sequence[float]]]`): per question its occupation and what each group got.

    Returns:
        `dict[str, list[float]]`: by occupation; those that got no answer at all are left out.
    """
    sums: dict[str, list[float]] = {}
    for name, values in answers:
        sums[name] = [old + new for old, new in zip(sums.get(name, [0.0] * len(values)), values, strict=True)]
    return {name: [v / sum(values) for v in values] for name, values in sorted(sums.items()) if sum(values) > 0}


def imbalance(shares: torch.Tensor, fair: Optional[torch.Tensor] = None) -> torch.Tensor:
    """
    Bias of an occupation, sum over its groups of |p_g - 1/k|: for two |p_pro - p_anti|.

    Args:
        shares (`torch.Tensor`): shape `(..., k)`.
        fair (`torch.Tensor`, *optional*): the fair shares, of that shape; default 1/k.
    """
    return (shares - (1 / shares.shape[-1] if fair is None else fair)).abs().sum(-1)


class FairnessReward:
    """
    The fairness reward as a reward function of TRL, for any trainer that samples answers.

    It counts, over the answers of all processes, what the current model says per occupation, and pays each answer by
    [`group_rewards`]. The dataset must have the columns `occupation`, `answers` and `meanings`, and may have `right`
    (rows with a right answer are not rewarded: 0 for all answers, so that only a KL term counts; nor are rows whose
    answers all mean one group, which say nothing about fairness).

    Args:
        groups (`Sequence[str]`, defaults to `("pro", "anti")`): the meanings that answers can have.
        abstain_reward (`float`, *optional*, defaults to -1): reward of giving none of the answers or several. The
            paper's formula reads as +1, which rewards refusing. `None` leaves such answers out.
        smoothing (`float`, defaults to 0.1): see [`group_rewards`].
        memory (`float`, defaults to 0.9): share of the earlier counts that is kept at each step, in [0, 1).
        weights (`Mapping[str, float]`, *optional*): weight per occupation, N / (K n_o) for n_o of N rows and K
            occupations, so that each occupation counts the same (the assumption of the paper's theorem 1).

    Raises:
        ValueError: a setting is out of its range.
    """

    __name__ = "fairness_reward"  # TRL names its metrics by it

    def __init__(
        self,
        groups: Sequence[str] = ("pro", "anti"),
        abstain_reward: Optional[float] = -1.0,
        smoothing: float = 0.1,
        memory: float = 0.9,
        weights: Optional[Mapping[str, float]] = None,
    ) -> None:
        if len(set(groups)) < 2 or len(set(groups)) < len(groups):
            raise ValueError(f"groups={list(groups)!r}: give at least two different groups.")
        if not 0 <= smoothing <= 2:
            raise ValueError(f"smoothing={smoothing!r}: give an imbalance in [0, 2].")
        if not 0 <= memory < 1:
            raise ValueError(f"memory={memory!r}: give a share in [0, 1).")
        self.groups = tuple(groups)
        self.abstain_reward = abstain_reward
        self.smoothing = smoothing
        self.memory = memory
        self.weights = dict(weights) if weights is not None else {}
        self.counts: dict[str, list[float]] = {}
        self.due: dict[str, list[float]] = {}  # what the counts would be if the same questions were answered fairly
        self.latest: list[Said] = []  # what was observed last

    def observe(
        self, answers: Sequence[tuple[str, Sequence[float]]], offered: Optional[Sequence[Sequence[bool]]] = None
    ) -> None:
        """
        Take answers into the counts, without paying them: also a warm start from a first pass. Answers to questions
        that offer one group only are left out.

        Args:
            answers (`Sequence[tuple[str, Sequence[float]]]`): occupation and, per group, the count or probability of
                its answers (all 0 for an abstention), of this process; they are gathered from all.
            offered (`Sequence[Sequence[bool]]`, *optional*): per question the groups that it offers; default all.
        """
        masks = [[True] * len(self.groups)] * len(answers) if offered is None else offered
        self.latest = gather_object(
            [
                (name, list(values), [sum(values) * there / sum(mask) for there in mask])
                for (name, values), mask in zip(answers, masks, strict=True)
                if sum(mask) > 1
            ]
        )
        for totals in (*self.counts.values(), *self.due.values()):
            totals[:] = [self.memory * value for value in totals]
        for occupation, *observed in self.latest:
            for known, values in zip((self.counts, self.due), observed, strict=True):
                totals = known.setdefault(occupation, [0.0] * len(self.groups))
                totals[:] = [old + new for old, new in zip(totals, values, strict=True)]

    def reset(self) -> None:
        """Forget what was counted."""
        self.counts, self.due = {}, {}

    def shares(self, occupation: str) -> list[float]:
        """The groups' shares of an occupation's counted answers; equal shares where nothing was counted."""
        return self._shares_of(self.counts.get(occupation))

    def fair(self, occupation: str) -> list[float]:
        """What these shares would be if each question were answered with equal ones for the groups that it offers."""
        return self._shares_of(self.due.get(occupation))

    def _shares_of(self, totals: Optional[Sequence[float]]) -> list[float]:
        total = sum(totals or ())
        return [value / total for value in totals] if totals and total else [1 / len(self.groups)] * len(self.groups)

    def bias_of(self, said: Sequence[Said]) -> float:
        """Mean imbalance over the occupations that got an answer, such as of `latest`; NaN where none did."""
        shares = answer_shares([(name, values) for name, values, _ in said])
        fair = answer_shares([(name, due) for name, _, due in said])
        if not shares:
            return float("nan")
        return float(imbalance(torch.tensor([*shares.values()]), torch.tensor([*fair.values()])).mean())

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        occupation: Sequence[str],
        answers: Sequence[Sequence[str]],
        meanings: Sequence[Sequence[str]],
        right: Optional[Sequence[Optional[int]]] = None,
        forms: Optional[Sequence[Any]] = None,
        abstentions: Optional[Sequence[Any]] = None,
        log_metric: Any = None,
        log_extra: Any = None,
        **kwargs: Any,
    ) -> list[Optional[float]]:
        """
        Rewards of a batch of completions (the signature of TRL's reward functions).

        Returns:
            `list[Optional[float]]`: one reward per completion.

        Raises:
            ValueError: a meaning is not one of the groups.
        """
        nothing: list[Any] = [None] * len(completions)
        rights = right if right is not None else nothing
        given: list[Optional[str]] = []
        for completion, groups, *asked in zip(
            completions, meanings, answers, forms or nothing, abstentions or nothing, strict=True
        ):
            row = dict(zip(("answers", "forms", "abstentions"), asked, strict=True))
            unknown = set(groups) - set(self.groups)
            if unknown:
                raise ValueError(f"The meaning {unknown.pop()!r} is none of the groups {', '.join(self.groups)}.")
            text = completion if isinstance(completion, str) else completion[-1]["content"]
            index = read_row(text, row)
            given.append(groups[index] if index is not None and index < len(groups) else None)
        offered = [[group in groups for group in self.groups] for groups in meanings]
        paid = [r is None and sum(mask) > 1 for r, mask in zip(rights, offered, strict=True)]
        said = [(o, [float(g == group) for group in self.groups]) for o, g in zip(occupation, given, strict=True)]
        self.observe([*compress(said, paid)], [*compress(offered, paid)])
        by_name = {
            name: group_rewards(torch.tensor(self.shares(name)), self.smoothing, torch.tensor(self.fair(name)))
            for name in set(occupation)
        }
        rewards: list[Optional[float]] = []
        for name, group, is_paid in zip(occupation, given, paid, strict=True):
            if not is_paid:
                rewards.append(0.0)
            elif group is None:
                rewards.append(
                    None if self.abstain_reward is None else self.abstain_reward * self.weights.get(name, 1.0)
                )
            else:
                reward = float(by_name[name][self.groups.index(group)])
                rewards.append(reward * self.weights.get(name, 1.0))
        if log_metric is not None and any(paid):
            log_metric("abstention", sum(group is None for group in compress(given, paid)) / sum(paid))
            if (bias := self.bias()) == bias:
                log_metric("per_occupation_bias", bias)
        if log_extra is not None:
            log_extra("occupation", list(occupation))
            log_extra("status", [g or "abstain" for g in given])
        return rewards

    def bias(self) -> float:
        """Mean imbalance over the occupations counted so far; NaN where nothing was counted."""
        return self.bias_of([(name, counts, self.due[name]) for name, counts in self.counts.items()])

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {
            "groups": list(self.groups),
            "counts": {name: list(values) for name, values in self.counts.items()},
            "due": {name: list(values) for name, values in self.due.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Take up the counts of a checkpoint.

        Raises:
            ValueError: they were made with other groups.
        """
        if list(state["groups"]) != list(self.groups):
            raise ValueError(f"The checkpoint counts {state['groups']}, this reward {list(self.groups)}.")
        self.counts, self.due = (
            {name: list(values) for name, values in state[key].items()} for key in ("counts", "due")
        )


def occupation_weights(occupations: Sequence[str]) -> dict[str, float]:
    """
    Weights N / (K n_o) that make each occupation count the same.

    Args:
        occupations (`Sequence[str]`): the occupation of each row.

    Returns:
        `dict[str, float]`: weight per occupation, of mean 1 over the rows.
    """
    counts: dict[str, int] = {}
    for name in occupations:
        counts[name] = counts.get(name, 0) + 1
    return {name: len(occupations) / (len(counts) * n) for name, n in counts.items()}
