"""Measures against arithmetic in the open."""

import math

import numpy as np
import pytest

from peft_dso.evaluation import measures as metrics


SHARES = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
NAMES = ["nurse", "nurse", "driver", "driver"]
PAIRS = list("abcd")
EACH = [str(i) for i in range(24)]


def test_per_occupation_bias_is_the_mean_over_occupations():
    found = metrics.per_occupation_bias(SHARES, NAMES, PAIRS)
    assert found.value == pytest.approx((abs(0.8 - 0.2) + abs(0.3 - 0.7)) / 2) and found.n == 4
    assert metrics.occupation_biases(SHARES, NAMES) == pytest.approx({"nurse": 0.6, "driver": -0.4})
    assert metrics.stereotype_gap(SHARES, PAIRS).value == pytest.approx((0.6 - 0.4) / 2)


def test_opposite_biases_cancel_in_the_gap_only():
    shares = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.stereotype_gap(shares, ["a", "b"]).value == 0
    assert metrics.per_occupation_bias(shares, ["nurse", "driver"], ["a", "b"]).value == 1


def test_occupations_count_the_same_whatever_their_samples():
    shares = np.array([[1.0, 0.0]] + [[0.5, 0.5]] * 9)
    assert metrics.per_occupation_bias(shares, ["nurse"] + ["driver"] * 9, list("abcdefghij")).value == 0.5


def test_four_groups():
    shares = np.array([[0.7, 0.1, 0.1, 0.1]])
    assert metrics.per_occupation_bias(shares, ["nurse"], ["a"]).value == pytest.approx(0.45 + 3 * 0.15)


def test_abstentions_are_left_out_and_nothing_is_nan():
    shares = np.array([[np.nan, np.nan], [1.0, 0.0], [np.nan, np.nan]])
    found = metrics.per_occupation_bias(shares, ["nurse", "nurse", "driver"], list("abc"))
    assert found.value == 1 and found.n == 3
    assert math.isnan(metrics.occupation_biases(shares, ["nurse", "nurse", "driver"])["driver"])
    nothing = np.full((2, 2), np.nan)
    assert math.isnan(metrics.per_occupation_bias(nothing, ["nurse"] * 2, ["a", "b"]).value)
    assert math.isnan(metrics.stereotype_gap(nothing, ["a", "b"]).value)
    assert math.isnan(metrics.mean([], []).value) and metrics.mean([], []).n == 0
    assert math.isnan(metrics.per_occupation_bias(np.empty((0, 2)), [], []).value)


def test_the_standard_error_of_a_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    found = metrics.mean(x, [str(i) for i in range(400)])
    assert found.standard_error == pytest.approx(x.std(ddof=1) / 20, rel=0.1)
    assert math.isnan(metrics.mean([1.0], ["a"]).standard_error)


def test_the_bootstrap_draws_pairs_together():
    """Ten copies of each value are worth no more than one."""
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=100), 10)
    together = metrics.mean(x, [str(i // 10) for i in range(1000)]).standard_error
    apart = metrics.mean(x, [str(i) for i in range(1000)]).standard_error
    assert together == pytest.approx(x[::10].std(ddof=1) / 10, rel=0.15)
    assert together > 2.5 * apart


def test_the_bootstrap_is_seeded():
    def error(seed):
        return metrics.per_occupation_bias(
            SHARES.repeat(5, 0), NAMES * 5, [str(i) for i in range(20)], seed
        ).standard_error

    assert error(3) == error(3) != error(4)


def test_the_noise_floor_is_what_a_fair_model_shows():
    """E|mean of n coin flips|, which is positive though the coin is fair."""
    rng = np.random.default_rng(0)
    flips = rng.integers(2, size=(20, 12))
    shares = np.stack([flips.ravel(), 1 - flips.ravel()], 1).astype(float)
    names = np.repeat([f"o{i}" for i in range(20)], 12).tolist()
    exact = sum(math.comb(12, k) * abs(2 * k - 12) / 12 for k in range(13)) / 2**12
    assert metrics.noise_floor(shares, names, [str(i) for i in range(240)]) == pytest.approx(exact, abs=0.01)
    certain = np.full((24, 2), 0.5)
    assert metrics.noise_floor(certain, ["nurse"] * 24, EACH) == 0
    assert math.isnan(metrics.noise_floor(SHARES[:1], ["nurse"], ["a"]))
    # A strongly but evenly biased model has no noise: its floor is small.
    assert metrics.noise_floor(np.tile([[0.9, 0.1]], (24, 1)), ["nurse"] * 24, EACH) == pytest.approx(0, abs=1e-12)
    # What belongs together is one coin.
    coins = np.repeat(shares[:12], 2, 0)
    alone = metrics.noise_floor(shares[:12], ["nurse"] * 12, EACH[:12], draws=20000)
    twice = metrics.noise_floor(coins, ["nurse"] * 24, [str(i // 2) for i in range(24)], draws=20000)
    assert twice == pytest.approx(alone, rel=0.03)


def test_theorem_2():
    assert metrics.capability_bound(0.02) == pytest.approx(0.5 * math.sqrt(0.04))
    assert metrics.capability_bound(-1e-9) == 0


def test_a_measure_reads_well():
    assert f"{metrics.Measure(0.12345, 0.01, 3)}" == "0.123 ± 0.010"
    assert f"{metrics.Measure(0.12345, 0.01, 3):.1f}" == "0.1 ± 0.0"


def test_the_corrected_bias_is_nothing_at_the_floor_and_the_bias_far_above_it():
    assert metrics.corrected_bias(metrics.Measure(0.1, 0.01, 5), 0.1).value == 0
    assert metrics.corrected_bias(metrics.Measure(0.05, 0.01, 5), 0.1).value == 0
    assert metrics.corrected_bias(metrics.Measure(0.5, 0.01, 5), 0.3).value == pytest.approx(0.4)
    assert metrics.corrected_bias(metrics.Measure(0.5, 0.01, 5), 0.3).standard_error == pytest.approx(0.0125)
    assert math.isnan(metrics.corrected_bias(metrics.Measure(0.5, 0.01, 5), math.nan).value)


def test_the_corrected_bias_of_a_fair_coin_is_near_nothing():
    rng = np.random.default_rng(0)
    picked = rng.integers(2, size=400)
    shares = np.stack([picked, 1 - picked], 1).astype(float)
    names, pairs = [f"o{i % 20}" for i in range(400)], [str(i) for i in range(400)]
    raw = metrics.per_occupation_bias(shares, names, pairs)
    floor = metrics.noise_floor(shares, names, pairs)
    corrected = metrics.corrected_bias(raw, floor)
    assert raw.value > 0.1 and corrected.value < 2 * corrected.standard_error


def test_the_noise_floor_for_four_groups():
    rng = np.random.default_rng(1)
    picked = np.eye(4)[rng.integers(4, size=800)]
    names, pairs = [f"o{i % 10}" for i in range(800)], [str(i) for i in range(800)]
    shown = metrics.per_occupation_bias(picked, names, pairs).value
    assert metrics.noise_floor(picked, names, pairs) == pytest.approx(shown, rel=0.25)


def test_position_preference():
    assert metrics.position_preference([1.0, 1.0], [2, 2], ["a", "b"]).value == 1
    assert metrics.position_preference([0.5, 0.5], [2, 2], ["a", "b"]).value == 0
    assert metrics.position_preference([1 / 3, 1 / 3], [3, 3], ["a", "b"]).value == pytest.approx(0)
    assert metrics.position_preference([0.0, math.nan], [2, 2], ["a", "b"]).value == -1
    assert math.isnan(metrics.position_preference([math.nan], [2], ["a"]).value)


def test_difference():
    m = metrics.difference([1, 1, 0, 1], [True, True, False, False], list("abcd"))
    assert m.value == 0.5 and m.n == 4 and m.standard_error > 0
    for one in ([True, True], [False, False]):
        assert math.isnan(metrics.difference([1, 0], one, ["a", "b"]).value)
