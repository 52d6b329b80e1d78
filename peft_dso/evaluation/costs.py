"""What fairness costs at the least, and what a KL can cost at the most."""

from __future__ import annotations

import math

import numpy as np


def least_kl(masses: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """
    The least KL(fair || base) of distributions in which all groups that a question offers are equally likely.

    The nearest such distribution tilts the k groups against each other and leaves all else in proportion. Let the base
    give them m_1..m_k, G = (m_1 ... m_k)^(1/k) and r = 1 - sum m. A fair one with M / k on each costs

        KL(M) = M ln(M / (k G)) + (1 - M) ln((1 - M) / r)

    whose derivative ln(M / (k G)) - ln((1 - M) / r) is 0 at M = k G / (k G + r), where

        KL = -ln(k G + r)

    With M = m held it would be m ln(m / (k G)), which is m (-ln(4 p q)) / 2 for two groups with shares p and q.

    Args:
        masses (`np.ndarray`): the base's probability of each group, shape `(questions, groups)`.
        offered (`np.ndarray`): which groups each question offers, of the same shape.

    Returns:
        `np.ndarray`: in nats, shape `(questions,)`; inf where nothing is left but a group that would have to be 0.
    """
    k = offered.sum(axis=1)
    with np.errstate(divide="ignore"):
        logs = np.where(offered, np.log(masses), 0.0)
        middle = np.exp(logs.sum(axis=1) / np.maximum(k, 1))
        rest = np.clip(1 - (masses * offered).sum(axis=1), 0, 1)
        return np.asarray(np.maximum(-np.log(k * middle + rest), 0.0))


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
