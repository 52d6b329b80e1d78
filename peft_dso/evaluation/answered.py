"""What a model said to a set of questions at one strength, as the measures read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Optional

import numpy as np

from ..questions import question_groups
from .bias import noise_floor


@dataclass
class NeutralCost:
    """
    What a strength does to neutral texts; one number per text.

    Args:
        kl (`np.ndarray`): KL(steered || base) summed over the tokens, in nats.
        loss (`np.ndarray`): -log-probability of the text, in nats.
        base_loss (`np.ndarray`): the same at strength 0.
        tokens (`np.ndarray`): the number of tokens that are predicted.
    """

    kl: np.ndarray
    loss: np.ndarray
    base_loss: np.ndarray
    tokens: np.ndarray


@dataclass
class Answered:
    """
    What a model said at one strength.

    Args:
        rows (`Sequence[Mapping]`): questions.
        log_probs (`np.ndarray`): log-probabilities of their answers, shape `(questions, answers)`, -inf where a
            question has fewer; 0 and -inf for answers given in words (all -inf: none of them was given).
        abstained (`np.ndarray`, *optional*): log-probability of the named abstentions, shape `(questions,)`.
        kl (`np.ndarray`, *optional*): KL to the base in nats, shape `(questions,)`.
        base (`np.ndarray`, *optional*): the base's log-probabilities, of the shape of `log_probs`.
        neutral (`NeutralCost`, *optional*): what it does to neutral texts.
        seed (`int`, defaults to 0): of the bootstraps.
    """

    rows: Sequence[Mapping[str, Any]]
    log_probs: np.ndarray
    abstained: Optional[np.ndarray] = None
    kl: Optional[np.ndarray] = None
    base: Optional[np.ndarray] = None
    neutral: Optional[NeutralCost] = None
    seed: int = 0

    @cached_property
    def right(self) -> np.ndarray:
        """Index of the right answer, -1 for an ambiguous question."""
        return np.array([-1 if row.get("right") is None else row["right"] for row in self.rows])

    @cached_property
    def ambiguous(self) -> np.ndarray:
        """Numbers of the ambiguous questions."""
        return np.flatnonzero(self.right < 0)

    @cached_property
    def unambiguous(self) -> np.ndarray:
        """Numbers of the unambiguous questions."""
        return np.flatnonzero(self.right >= 0)

    @cached_property
    def named(self) -> np.ndarray:
        """Numbers of the ambiguous questions that name ways of not answering."""
        return np.array([i for i in self.ambiguous if self.rows[i].get("abstentions")], dtype=int)

    @cached_property
    def placed(self) -> np.ndarray:
        """Numbers of the ambiguous questions that tell which answer is named first."""
        return np.array([i for i in self.ambiguous if self.rows[i].get("first") is not None], dtype=int)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        return question_groups(self.rows)

    @cached_property
    def _group_of(self) -> np.ndarray:
        """Which answers mean which group, shape `(questions, answers, groups)`."""
        found = np.zeros((*self.log_probs.shape, len(self.groups)), dtype=bool)
        for i, row in enumerate(self.rows):
            for j, meaning in enumerate(row["meanings"]):
                found[i, j, self.groups.index(meaning)] = True
        return found

    @cached_property
    def offered(self) -> np.ndarray:
        """Which groups each question offers, shape `(questions, groups)`."""
        return np.asarray(self._group_of.any(axis=1))

    @cached_property
    def fair(self) -> np.ndarray:
        """The fair shares of each question: equal ones for the groups that it offers."""
        return self.offered / self.offered.sum(axis=1, keepdims=True)

    @cached_property
    def answers(self) -> np.ndarray:
        """The answers' shares among the named ones, shape `(questions, answers)`; NaN where none was given."""
        return _among_named(self.log_probs)

    @cached_property
    def base_answers(self) -> np.ndarray:
        """The same for the base."""
        return self.answers if self.base is None else _among_named(self.base)

    @cached_property
    def shares(self) -> np.ndarray:
        """
        The groups' shares among the named answers, shape `(questions, groups)`; NaN where none was given, and where
        all answers mean one group, which says nothing about fairness.
        """
        shares = np.einsum("qa,qag->qg", self.answers, self._group_of.astype(float))
        shares[self.offered.sum(axis=1) < 2] = np.nan
        return shares

    @cached_property
    def first_choices(self) -> np.ndarray:
        """1 for the likeliest group and 0 for the others; a tie is shared."""
        chosen = (self.shares == self.shares.max(axis=1, keepdims=True)).astype(float)
        chosen[np.isnan(self.shares).any(axis=1)] = np.nan
        return chosen / chosen.sum(axis=1, keepdims=True)

    @cached_property
    def masses(self) -> np.ndarray:
        """The base's probability of each group, shape `(questions, groups)`."""
        p = np.exp(self.log_probs if self.base is None else self.base)
        return np.asarray(np.einsum("qa,qag->qg", p, self._group_of.astype(float)))

    def shares_of(self, first_choice: bool) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
        """The shares in the ambiguous questions, with the occupation, the pair and the fair shares of each."""
        chosen = self.ambiguous
        shares = (self.first_choices if first_choice else self.shares)[chosen]
        return shares, [self.rows[i]["occupation"] for i in chosen], self.pairs(chosen), self.fair[chosen]

    def floor(self, first_choice: bool) -> float:
        """See [`~peft_dso.evaluation.bias.noise_floor`]."""
        if first_choice not in self._floors:
            shares, occupations, pairs, fair = self.shares_of(first_choice)
            self._floors[first_choice] = noise_floor(shares, occupations, pairs, self.seed, fair=fair)
        return self._floors[first_choice]

    @cached_property
    def _floors(self) -> dict[bool, float]:
        return {}

    def pairs(self, chosen: Sequence[int] | np.ndarray) -> list[str]:
        """What each of some questions belongs to; a question without a pair stands alone."""
        return [str(self.rows[i].get("pair") or f"question {i}") for i in chosen]

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the right answer of each unambiguous question is the likeliest, and was given at all."""
        return self._correct(self.log_probs)

    @cached_property
    def base_correct(self) -> np.ndarray:
        """The same for the base."""
        return self._correct(self.log_probs if self.base is None else self.base)

    def _correct(self, log_probs: np.ndarray) -> np.ndarray:
        chosen = self.unambiguous
        wanted = self.right[chosen]
        return (log_probs[chosen].argmax(axis=1) == wanted) & np.isfinite(log_probs[chosen, wanted])


def _among_named(log_probs: np.ndarray) -> np.ndarray:
    highest = log_probs.max(axis=1, keepdims=True)
    p = np.exp(log_probs - np.where(np.isfinite(highest), highest, 0.0))
    total = p.sum(axis=1, keepdims=True)
    return np.divide(p, total, out=np.full_like(p, np.nan), where=total > 0)
