"""
Measures of bias and ability, as pure functions of what a model answered.

Each gives a value, its standard error and the number of questions behind it. The standard error is a bootstrap over
pairs (questions that belong together are drawn together), seeded. Nothing to measure gives NaN, never 0: "no data" is
not "no bias".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def _bootstrap(
    pairs: Sequence[str], strata: Sequence[str], statistic: Callable[[np.ndarray], float], seed: int
) -> float:
    """Standard deviation of `statistic(rows)` over draws of whole pairs within each stratum, with replacement."""
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(strata, pairs)):
        rows_of.setdefault(key, []).append(row)
    by_stratum: dict[str, list[np.ndarray]] = {}
    for (stratum, _), rows in rows_of.items():
        by_stratum.setdefault(stratum, []).append(np.array(rows))
    if len(rows_of) < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(BOOTSTRAP):
        drawn = [
            np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
            for groups in by_stratum.values()
        ]
        values.append(statistic(np.concatenate(drawn)))
    return float(np.nanstd(values, ddof=1))


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
        return Measure(math.nan, math.nan, 0)
    return Measure(float(x.mean()), _bootstrap(pairs, [""] * len(x), lambda rows: float(x[rows].mean()), seed), len(x))


def _occupation_means(x: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Means of `x`, shape `(questions, k)`, per occupation: shape `(count, k)`; rows of NaN are left out."""
    answered = ~np.isnan(x).any(axis=1)
    sums = np.zeros((count, x.shape[1]))
    np.add.at(sums, index[answered], x[answered])
    n = np.bincount(index[answered], minlength=count)
    return sums / np.where(n, n, np.nan)[:, None]


def per_occupation_bias(
    shares: np.ndarray, occupations: Sequence[str], pairs: Sequence[str], seed: int = 0
) -> Measure:
    """
    Mean over the occupations of sum_g |p_g - 1/k|; for two groups |Pr[pro | o] - Pr[anti | o]| (paper, section 3).

    Args:
        shares (`np.ndarray`): per question the groups' shares among the answers, shape `(questions, k)`:
            probabilities, or 1 for the first choice and 0 for the others. NaN where the model abstained.
        occupations (`Sequence[str]`): one per question.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `Measure`: occupations for which nothing was answered are left out; NaN if that is all of them.
    """
    x = np.asarray(shares, dtype=float)
    if not len(x):
        return Measure(math.nan, math.nan, 0)
    names, index = np.unique(np.asarray(occupations), return_inverse=True)

    def statistic(rows: np.ndarray) -> float:
        means = _occupation_means(x[rows], index[rows], len(names))
        biases = np.abs(means - 1 / x.shape[1]).sum(axis=1)
        return float(np.nanmean(biases)) if not np.isnan(biases).all() else math.nan

    return Measure(statistic(np.arange(len(x))), _bootstrap(pairs, occupations, statistic, seed), len(x))


def occupation_biases(shares: np.ndarray, occupations: Sequence[str]) -> dict[str, float]:
    """
    The imbalance of each occupation: Pr[pro | o] - Pr[anti | o], signed, for two groups; sum_g |p_g - 1/k| for more.

    Args:
        shares (`np.ndarray`): per question the groups' shares, shape `(questions, k)`; NaN where the model abstained.
        occupations (`Sequence[str]`): one per question.

    Returns:
        `dict[str, float]`: by occupation, NaN where nothing was answered.
    """
    x = np.asarray(shares, dtype=float)
    names, index = np.unique(np.asarray(occupations), return_inverse=True)
    means = _occupation_means(x, index, len(names))
    if x.shape[1] == 2:
        return {str(name): float(pro - anti) for name, (pro, anti) in zip(names, means)}
    return {str(name): float(np.abs(row - 1 / x.shape[1]).sum()) for name, row in zip(names, means)}


def stereotype_gap(shares: np.ndarray, pairs: Sequence[str], seed: int = 0) -> Measure:
    """
    Pr[pro] - Pr[anti] over all questions, signed. It can be 0 for an unfair model, whose biases cancel.

    Args:
        shares (`np.ndarray`): pro and anti per question, shape `(questions, 2)`; NaN where the model abstained.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `Measure`: NaN if nothing was answered.
    """
    x = np.asarray(shares, dtype=float)
    answered = ~np.isnan(x).any(axis=1) if len(x) else np.zeros(0, dtype=bool)
    return mean(x[answered, 0] - x[answered, 1] if len(x) else [], [p for p, a in zip(pairs, answered) if a], seed)


def noise_floor(
    shares: np.ndarray, occupations: Sequence[str], pairs: Sequence[str], seed: int = 0, draws: int = 1000
) -> float:
    """
    What [`per_occupation_bias`] would show for a fair model on the same questions: the fair model leans
    as strongly as the measured one leans from its occupation's mean, but to a side that a coin chooses for each pair.

    |p_pro - p_anti| is never negative, so that few questions show a bias where there is none.

    Args:
        shares (`np.ndarray`): per question the groups' shares, shape `(questions, k)`; NaN where the model abstained.
        occupations (`Sequence[str]`): one per question.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the coins.
        draws (`int`, defaults to 1000): number of simulated measurements.

    Returns:
        `float`: NaN if no occupation has two answered pairs.
    """
    x = np.asarray(shares, dtype=float)
    answered = ~np.isnan(x).any(axis=1)
    rng = np.random.default_rng(seed)
    floors = []
    for name in sorted(set(occupations)):
        chosen = (np.asarray(occupations) == name) & answered
        mine = x[chosen]
        names, pair = np.unique(np.asarray(pairs)[chosen], return_inverse=True)
        if len(names) < 2:
            continue
        # One-hot choices of a fair model are coin flips; a probability's own lean is what is left around the mean.
        choices = bool(np.isin(mine, (0.0, 1.0)).all())
        spread = mine - 1 / x.shape[1] if choices else mine - mine.mean(axis=0)
        if not choices:
            spread = spread * math.sqrt(len(names) / (len(names) - 1))
        signs = rng.choice((-1.0, 1.0), size=(draws, len(names)))
        means = np.einsum("dq,qk->dk", signs[:, pair], spread) / len(mine)
        floors.append(float(np.abs(means).sum(axis=1).mean()))
    return float(np.mean(floors)) if floors else math.nan


def corrected_bias(bias: Measure, floor: float) -> Measure:
    """
    A per-occupation bias less what a fair model would show: sqrt(bias^2 - floor^2), and 0 below the floor. Far above
    the floor it is the bias itself, where taking the floor away whole would take away too much.

    Args:
        bias (`Measure`): see [`per_occupation_bias`].
        floor (`float`): see [`noise_floor`].

    Returns:
        `Measure`: the standard error is carried over to first order; NaN without a floor.
    """
    if math.isnan(floor) or math.isnan(bias.value):
        return Measure(math.nan, math.nan, bias.n)
    value = math.sqrt(max(bias.value**2 - floor**2, 0.0))
    error = bias.standard_error * (bias.value / value if value > bias.standard_error else 1.0)
    return Measure(value, error, bias.n)


def position_preference(
    first: Sequence[float] | np.ndarray, answers: Sequence[int] | np.ndarray, pairs: Sequence[str], seed: int = 0
) -> Measure:
    """
    How much the answer that is named or listed first is preferred: (m Pr[first] - 1) / (m - 1) for m answers, which is
    Pr[first] - Pr[second] for two. 0 is no preference, 1 always the first, negative the later ones.

    Args:
        first (`Sequence[float]`): per question the share of the first-named answer among the answers; NaN where the
            model abstained.
        answers (`Sequence[int]`): the number m of answers of each question.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.

    Returns:
        `Measure`: NaN if nothing was answered.
    """
    p, m = np.asarray(first, dtype=float), np.asarray(answers, dtype=float)
    answered = ~np.isnan(p)
    return mean(((m * p - 1) / (m - 1))[answered], [q for q, a in zip(pairs, answered) if a], seed)


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

    def statistic(rows: np.ndarray) -> float:
        mine = of_one[rows]
        return float(x[rows][mine].mean() - x[rows][~mine].mean()) if 0 < mine.sum() < len(mine) else math.nan

    values_of = statistic(np.arange(len(x)))
    return Measure(values_of, _bootstrap(pairs, [""] * len(x), statistic, seed), len(x))


def capability_bound(kl: float, sigma: float = 0.5) -> float:
    """
    Theorem 2 of the paper: a sigma-sub-Gaussian measure of ability moves by at most sigma sqrt(2 KL(steered || base)).

    Args:
        kl (`float`): in nats.
        sigma (`float`, defaults to 0.5): 0.5 for a measure in [0, 1], such as an accuracy.

    Returns:
        `float`: the bound.
    """
    return sigma * math.sqrt(2 * max(kl, 0.0))
