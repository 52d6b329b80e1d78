"""
Means and their standard errors, as pure functions of numbers per question.

The standard error is a bootstrap over whole pairs (questions that belong together, such as one sentence charged to
two occupations), seeded. Each draw gives every pair a weight from an exponential distribution (the Bayesian bootstrap,
Rubin 1981), so that no occupation is ever left without a question; the deviations are stretched by
sqrt((n + 1) / (n - 1)) for the n pairs of an occupation, which makes the variance of a mean the unbiased one also for
few. All draws are one product of matrices. Nothing to measure gives NaN, never 0: "no data" is not "no bias".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


BOOTSTRAP = 500


@dataclass(frozen=True)
class Measure:
    """
    A measured value.

    Args:
        value (`float`): NaN where nothing could be measured.
        standard_error (`float`): NaN where fewer than two pairs were measured.
        n (`int`): number of questions.
    """

    value: float
    standard_error: float
    n: int

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} ± {self.standard_error:{spec}}"


NOTHING = Measure(math.nan, math.nan, 0)


@functools.lru_cache(maxsize=4)
def _weights(pairs: int, seed: int) -> np.ndarray:
    """The weights of the pairs in each draw, shape `(BOOTSTRAP, pairs)`; the same for all measures of a set."""
    weights = np.random.default_rng(seed).standard_exponential((BOOTSTRAP, pairs))
    weights.flags.writeable = False
    return weights


@dataclass(frozen=True)
class Drawn:
    """
    Means of `k` numbers in each of some cells (the occupations, or one cell for all questions), and the draws of them.

    Args:
        means (`np.ndarray`): shape `(cells, k)`; NaN in a cell without an answered question.
        deviations (`np.ndarray`): of the draws from the means, shape `(BOOTSTRAP, cells, k)`.
        pairs (`np.ndarray`): the number of pairs behind each cell, shape `(cells,)`.
    """

    means: np.ndarray
    deviations: np.ndarray
    pairs: np.ndarray


def numbered(names: Sequence[str] | np.ndarray) -> tuple[list[str], np.ndarray]:
    """The different names in order, and the number of each of the given ones."""
    found, index = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return found.tolist(), index


def draw(x: np.ndarray, cell: np.ndarray, cells: int, pairs: Sequence[str], seed: int) -> Drawn:
    """
    Means of `k` numbers per question in each of some cells, and their draws.

    Args:
        x (`np.ndarray`): shape `(questions, k)`; rows with a NaN are left out.
        cell (`np.ndarray`): the number of each question's cell, shape `(questions,)`.
        cells (`int`): how many there are.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`): of the bootstrap.
    """
    names, pair = numbered(pairs)
    answered = ~np.isnan(x).any(axis=1)
    place = (pair * cells + cell)[answered]
    counts = np.bincount(place, minlength=len(names) * cells).reshape(len(names), cells)
    sums = np.stack(
        [np.bincount(place, column, len(names) * cells).reshape(len(names), cells) for column in x[answered].T], -1
    )
    number = counts.sum(axis=0)
    means = sums.sum(axis=0) / np.where(number, number, np.nan)[:, None]
    # What each pair adds to the deviation of a cell's mean, weighted: sum w (s - n mean) / sum w n.
    left = np.nan_to_num(sums - counts[..., None] * means)
    weights = _weights(len(names), seed)
    total = weights @ counts
    drawn = (weights @ left.reshape(len(names), -1)).reshape(BOOTSTRAP, *means.shape)
    behind = (counts > 0).sum(axis=0)
    stretch = np.sqrt((behind + 1) / np.maximum(behind - 1, 1))
    return Drawn(means, drawn * (stretch / np.where(total > 0, total, 1.0))[..., None], behind)


def spread(draws: np.ndarray) -> float:
    """Standard deviation of draws, shape `(BOOTSTRAP,)`."""
    return float(draws.std(ddof=1))


def _one_cell(values: np.ndarray, pairs: Sequence[str], seed: int) -> Drawn:
    return draw(values, np.zeros(len(values), dtype=int), 1, pairs, seed)


def mean(values: Sequence[float] | np.ndarray, pairs: Sequence[str], seed: int = 0) -> Measure:
    """
    The mean of one number per question, such as an accuracy, an abstention or a KL.

    Args:
        values (`Sequence[float]`): one per question.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `Measure`: NaN for no question.
    """
    x = np.asarray(values, dtype=float)
    if not len(x):
        return NOTHING
    if not np.isfinite(x).all():  # a KL to what the base never says
        return Measure(float(x.mean()), math.nan, len(x))
    drawn = _one_cell(x[:, None], pairs, seed)
    error = spread(drawn.deviations[:, 0, 0]) if drawn.pairs[0] > 1 else math.nan
    return Measure(float(x.mean()), error, len(x))


def ratio(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, pairs: Sequence[str], seed: int = 0
) -> Measure:
    """
    The sum of some numbers over the sum of others, such as a KL over the least that it could be, or per token.

    Args:
        above (`Sequence[float]`): one per question.
        below (`Sequence[float]`): one per question.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `Measure`: NaN for no question, and where the lower sum is 0 or a number is not finite.
    """
    x = np.stack([np.asarray(above, dtype=float), np.asarray(below, dtype=float)], 1)
    if not len(x) or not x[:, 1].sum() > 0 or not np.isfinite(x).all():
        return Measure(math.nan, math.nan, len(x))
    drawn = _one_cell(x, pairs, seed)
    up, down = drawn.means[0]
    # To first order: a draw of the lower mean may come near 0.
    error = spread((drawn.deviations[:, 0, 0] - up / down * drawn.deviations[:, 0, 1]) / down)
    return Measure(float(up / down), error if drawn.pairs[0] > 1 else math.nan, len(x))


def difference(
    values: Sequence[float] | np.ndarray, one: Sequence[bool] | np.ndarray, pairs: Sequence[str], seed: int = 0
) -> Measure:
    """
    The mean over some questions less the mean over the others, such as the accuracy where the right answer is the
    stereotype less the accuracy where it is not (WinoBias's measure).

    Args:
        values (`Sequence[float]`): one per question.
        one (`Sequence[bool]`): which questions are of the first kind.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `Measure`: NaN where there is no question of one of the kinds.
    """
    x, of_one = np.asarray(values, dtype=float), np.asarray(one, dtype=bool)
    if not of_one.any() or of_one.all():
        return Measure(math.nan, math.nan, len(x))
    drawn = draw(x[:, None], of_one.astype(int), 2, pairs, seed)
    error = spread(drawn.deviations[:, 1, 0] - drawn.deviations[:, 0, 0]) if drawn.pairs.min() > 1 else math.nan
    return Measure(float(drawn.means[1, 0] - drawn.means[0, 0]), error, len(x))
