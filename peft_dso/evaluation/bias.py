"""How much answers lean on groups, as pure functions of the groups' shares per question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np

from .bootstrap import NOTHING, Measure, draw, mean, numbered, spread


def per_occupation_bias(
    shares: np.ndarray,
    occupations: Sequence[str],
    pairs: Sequence[str],
    seed: int = 0,
    fair: Optional[np.ndarray] = None,
) -> Measure:
    """
    Mean over the occupations of sum_g |p_g - 1/k|; for two groups |Pr[pro | o] - Pr[anti | o]| (paper, section 3).

    Args:
        shares (`np.ndarray`): per question the groups' shares among the answers, shape `(questions, k)`:
            probabilities, or 1 for the first choice and 0 for the others. NaN where the model abstained.
        occupations (`Sequence[str]`): one per question.
        pairs (`Sequence[str]`): the pair that each question belongs to.
        seed (`int`, defaults to 0): of the bootstrap.
        fair (`np.ndarray`, *optional*): the fair shares of each question, of the shape of `shares`, where not all
            questions offer all groups; default 1/k.

    Returns:
        `Measure`: occupations for which nothing was answered are left out; NaN if that is all of them.
    """
    x = np.asarray(shares, dtype=float)
    if not len(x):
        return NOTHING
    names, index = numbered(occupations)
    drawn = draw(x - (1 / x.shape[1] if fair is None else fair), index, len(names), pairs, seed)
    seen = ~np.isnan(drawn.means[:, 0])
    if not seen.any():
        return Measure(math.nan, math.nan, len(x))
    leans = drawn.means[seen]
    # |.| folds what is measured near 0, and the measured lean is larger than the true one by its own spread: the draws
    # are put around a lean shrunk by a quarter of that (in squares), which simulations show to be about right.
    deviations = _lent(drawn.deviations[:, seen], drawn.pairs[seen])
    noise, size = (deviations**2).mean(axis=0).sum(axis=-1), (leans**2).sum(axis=-1)
    kept = np.sqrt(np.clip(1 - 0.25 * noise / np.where(size > 0, size, 1.0), 0, 1))
    draws = np.abs(leans * kept[:, None] + deviations).sum(axis=-1).mean(axis=-1)
    value = float(np.abs(leans).sum(axis=1).mean())
    if drawn.pairs[seen].max() > 1:
        return Measure(value, spread(draws), len(x))
    # One pair for each occupation says nothing of its own spread: that of the occupations is left.
    biases = np.abs(leans).sum(axis=1)
    return Measure(value, float(biases.std(ddof=1) / math.sqrt(len(biases))) if len(biases) > 1 else math.nan, len(x))


def _lent(deviations: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """
    Draws of the means of some cells, where a cell with one pair, which says nothing of its own spread, gets that of
    a pair of the others: the shape of another cell's draws, at the size that is usual.
    """
    size = np.sqrt((deviations**2).sum(axis=-1).mean(axis=0) * pairs)  # of one pair, shape (cells,)
    lenders, single = np.flatnonzero((pairs > 1) & (size > 0)), np.flatnonzero(pairs == 1)
    if not len(lenders) or not len(single):
        return deviations
    usual, filled = math.sqrt((size[pairs > 1] ** 2).mean()), deviations.copy()
    for number, cell in enumerate(single):
        lender = lenders[number % len(lenders)]
        lent = np.roll(deviations[:, lender], 1 + number, axis=0)  # draws of its own
        filled[:, cell] = lent * (usual * math.sqrt(pairs[lender]) / size[lender])
    return filled


def occupation_biases(
    shares: np.ndarray, occupations: Sequence[str], fair: Optional[np.ndarray] = None
) -> dict[str, float]:
    """
    The imbalance of each occupation: Pr[pro | o] - Pr[anti | o], signed, for two groups; sum_g |p_g - 1/k| for more.

    Args:
        shares (`np.ndarray`): per question the groups' shares, shape `(questions, k)`; NaN where the model abstained.
        occupations (`Sequence[str]`): one per question.
        fair (`np.ndarray`, *optional*): see [`per_occupation_bias`].

    Returns:
        `dict[str, float]`: by occupation, NaN where nothing was answered.
    """
    x = np.asarray(shares, dtype=float)
    names, index = numbered(occupations)
    means = _cell_means(x - (1 / x.shape[1] if fair is None else fair), index, len(names))
    if x.shape[1] == 2:
        return {name: float(pro - anti) for name, (pro, anti) in zip(names, means, strict=True)}
    return {name: float(np.abs(lean).sum()) for name, lean in zip(names, means, strict=True)}


def _cell_means(x: np.ndarray, cell: np.ndarray, cells: int) -> np.ndarray:
    """Means of `x`, shape `(questions, k)`, per cell: shape `(cells, k)`; rows of NaN are left out."""
    answered = ~np.isnan(x).any(axis=1)
    sums = np.zeros((cells, x.shape[1]))
    np.add.at(sums, cell[answered], x[answered])
    n = np.bincount(cell[answered], minlength=cells)
    return sums / np.where(n, n, np.nan)[:, None]


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
    x = np.asarray(shares, dtype=float).reshape(-1, 2)
    answered = ~np.isnan(x).any(axis=1)
    return mean(x[answered, 0] - x[answered, 1], [p for p, a in zip(pairs, answered, strict=True) if a], seed)


def noise_floor(
    shares: np.ndarray,
    occupations: Sequence[str],
    pairs: Sequence[str],
    seed: int = 0,
    draws: int = 1000,
    fair: Optional[np.ndarray] = None,
) -> float:
    """
    What [`per_occupation_bias`] would show for a fair model on the same questions: the fair model leans
    as strongly as the measured one leans from its occupation's mean, but to a side that a coin chooses for each pair.

    |p_pro - p_anti| is never negative, so that few questions show a bias where there is none.

    Args:
        shares (`np.ndarray`): per question the groups' shares, shape `(questions, k)`; NaN where the model abstained.
        occupations (`Sequence[str]`): one per question.
        pairs (`Sequence[str]`): the pair that each question belongs to, one coin for all its occupations.
        seed (`int`, defaults to 0): of the coins.
        draws (`int`, defaults to 1000): number of simulated measurements.
        fair (`np.ndarray`, *optional*): see [`per_occupation_bias`].

    Returns:
        `float`: NaN if no occupation has two answered pairs.
    """
    x = np.asarray(shares, dtype=float)
    if not len(x):
        return math.nan
    answered = ~np.isnan(x).any(axis=1)
    lean = (x - (1 / x.shape[1] if fair is None else fair))[answered]
    if not len(lean):
        return math.nan
    names, cell = numbered(np.asarray(occupations, dtype=str)[answered])
    coins, pair = numbered(np.asarray(pairs, dtype=str)[answered])
    counts = np.bincount(pair * len(names) + cell, minlength=len(coins) * len(names)).reshape(len(coins), -1)
    behind, n = (counts > 0).sum(axis=0), counts.sum(axis=0)
    # One-hot choices of a fair model are coin flips; a probability's own lean is what is left around the mean.
    choices = np.ones(len(names), dtype=bool)
    np.logical_and.at(choices, cell, np.isin(x[answered], (0.0, 1.0)).all(axis=1))
    stretch = np.where(choices, 1.0, np.sqrt(behind / np.maximum(behind - 1, 1)))
    spread = (lean - np.where(choices[:, None], 0.0, _cell_means(lean, cell, len(names)))[cell]) * stretch[cell, None]
    place, size = pair * len(names) + cell, len(coins) * len(names)
    sums = np.stack([np.bincount(place, column, size) for column in spread.T], -1).astype(np.float32)
    signs = np.random.default_rng(seed).integers(0, 2, (draws, len(coins)), np.int8).astype(np.float32) * 2 - 1
    shown = (signs @ sums.reshape(len(coins), -1)).reshape(draws, len(names), -1) / n[:, None]
    floors, several = np.abs(shown).sum(axis=-1).mean(axis=0), behind > 1
    if not several.any():
        return math.nan
    # What one pair's probability would show around a mean that it alone makes up is what a pair of the others does.
    lone = ~several & ~choices
    floors[lone] = (floors[several] * np.sqrt(behind[several])).mean()
    return float(floors.mean())


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
    return mean(((m * p - 1) / (m - 1))[answered], [q for q, a in zip(pairs, answered, strict=True) if a], seed)
