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


COUPLES, FRAMES = 20, 10


def couples(rng, noise):
    """One sentence for each couple and frame, charged to both of its occupations: each leans as its couple does."""
    lean = np.linspace(-0.6, 0.6, COUPLES)[:, None] * noise[0] + noise[1] * rng.normal(size=(COUPLES, FRAMES))
    lean = np.repeat(np.clip(lean, -1, 1).ravel(), 2)
    sentence = np.repeat(np.arange(COUPLES * FRAMES), 2)
    names = [f"o{2 * (s // FRAMES) + side}" for s, side in zip(sentence, [0, 1] * (COUPLES * FRAMES), strict=True)]
    return np.stack([(1 + lean) / 2, (1 - lean) / 2], 1), names, [f"s{s}" for s in sentence]


def covered(measure, worlds, tolerance=0.15):
    """The mean of the reported errors, in units of how far the values of many worlds really spread."""
    found = [measure(*world) for world in worlds]
    spread = np.std([m.value for m in found], ddof=1)
    assert np.mean([m.standard_error for m in found]) == pytest.approx(spread, rel=tolerance)


@pytest.mark.parametrize("noise", [(0, 0.3), (0.3, 0.3), (1, 0.3), (0, 0.05)])
def test_the_standard_error_of_a_bias_covers_sentences_about_two_occupations(noise):
    rng = np.random.default_rng(0)
    worlds = [couples(rng, noise) for _ in range(300)]
    covered(metrics.per_occupation_bias, worlds)
    if not noise[0]:  # of couples that lean apart a question says more than its own sentence: see the mean
        covered(lambda x, names, pairs: metrics.stereotype_gap(x, pairs), worlds)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_standard_error_of_a_bias_of_few_sentences(n):
    """20 occupations that lean far, n sentences of each."""
    rng = np.random.default_rng(0)
    names = [f"o{i % 20}" for i in range(20 * n)]
    leans = np.linspace(0.3, 0.5, 20)[np.arange(20 * n) % 20] + 0.1 * rng.normal(size=(300, 20 * n))
    worlds = [(np.stack([(1 + x) / 2, (1 - x) / 2], 1), names, [str(i) for i in range(20 * n)]) for x in leans]
    covered(metrics.per_occupation_bias, worlds)


def test_the_standard_error_of_first_choices_of_more_groups():
    rng = np.random.default_rng(0)
    names, pairs = [f"o{i % 12}" for i in range(360)], [str(i) for i in range(360)]
    worlds = [(np.eye(3)[rng.choice(3, size=360, p=[0.6, 0.25, 0.15])], names, pairs) for _ in range(300)]
    covered(metrics.per_occupation_bias, worlds)


def test_the_standard_errors_of_the_other_measures():
    """Clusters of one to four questions, as a world draws them."""
    rng = np.random.default_rng(0)
    sizes = np.arange(60) % 4 + 1
    pairs = np.repeat([str(i) for i in range(60)], sizes)
    right = np.arange(len(pairs)) % 3 == 0
    worlds = []
    for _ in range(300):
        shared = np.repeat(rng.normal(size=60), sizes)
        worlds.append(
            (0.6 + shared + rng.normal(size=len(pairs)), 2 + 0.3 * shared + 0.1 * rng.normal(size=len(pairs)))
        )
    covered(lambda x, y: metrics.mean(x, pairs), worlds)
    covered(lambda x, y: metrics.difference(x, right, pairs), worlds)
    covered(lambda x, y: metrics.ratio(x, y, pairs), worlds)
    covered(lambda x, y: metrics.position_preference(1 / (1 + np.exp(-x)), [2] * len(x), pairs), worlds)


def test_one_sentence_for_each_occupation():
    shares = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    found = metrics.per_occupation_bias(shares, list("abc"), list("xyz"))
    assert found.standard_error == pytest.approx(np.std([0.8, 0.2, 0.0], ddof=1) / 3**0.5)
    assert math.isnan(metrics.per_occupation_bias(shares[:1], ["a"], ["x"]).standard_error)


def test_a_ratio_without_anything_below():
    for below in ([0.0, 0.0], [1.0, math.inf]):
        assert math.isnan(metrics.ratio([1.0, 2.0], below, ["a", "b"]).value)
    assert math.isnan(metrics.mean([1.0, math.inf], ["a", "b"]).standard_error)


@pytest.mark.parametrize(
    ("masses", "offered"),
    [([0.6, 0.1], 2), ([0.5, 0.3, 0.05], 3), ([0.4, 0.2, 0.0], 2), ([0.7, 0.3], 2), ([0.01, 0.02], 2)],
)
def test_the_least_kl_of_a_fair_distribution(masses, offered):
    """Found by an optimiser over all distributions of the groups, equal ones, and of what is left in two parts."""
    from scipy.optimize import minimize

    rest = 1 - sum(masses)
    base = np.array([*masses[:offered], 0.3 * rest + 1e-15, 0.7 * rest + 1e-15])

    def kl(x):
        free = np.exp(x - np.logaddexp.reduce(x))  # mass on the groups, and the two parts of the rest
        q = np.array([*[free[0] / offered] * offered, *free[1:]])
        return float((q * np.log(q / base)).sum())

    best = minimize(kl, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 5000})
    found = metrics.least_kl(np.array([masses]), np.array([[True] * offered + [False] * (len(masses) - offered)]))
    assert found[0] == pytest.approx(best.fun, abs=1e-7) and found[0] > 0
    if offered == 2:  # no dearer than leaving the mass as it is
        m, (p, q) = sum(masses), np.array(masses[:2]) / sum(masses[:2])
        assert found[0] <= -m * math.log(4 * p * q) / 2 + 1e-12


def test_the_least_kl_of_a_fair_base_is_nothing():
    offered = np.ones((3, 2), dtype=bool)
    found = metrics.least_kl(np.array([[0.3, 0.3], [0.4, 0.0], [1.0, 0.0]]), offered)
    assert found[:2] == pytest.approx([0, -math.log(0.6)]) and math.isinf(found[2])


def test_every_measure_has_its_words():
    for name, kind in metrics.MEASURES.items():
        assert (
            kind.name == name and kind.title and kind.column and kind.about in ("ambiguous", "unambiguous", "neutral")
        )
        assert kind.floor is None or kind.floor in metrics.MEASURES
    places = [kind.place for kind in metrics.MEASURES.values() if kind.place]
    assert len(places) == len(set(places))


@pytest.mark.parametrize("single", [39, 30, 10])
def test_the_standard_error_where_some_occupations_have_one_sentence(single):
    """Their spread is lent by the others; without that it would be three to ten times too small."""
    leans = np.random.default_rng(0).normal(0, 0.2, 40)
    values, errors, floors = [], [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        names = [f"{o}" for o in range(40) for _ in range(1 if o < single else 2)]
        p = np.clip([0.5 + leans[int(name)] + rng.normal(0, 0.15) for name in names], 0, 1)
        shares, pairs = np.stack([p, 1 - p], 1), [str(n) for n in range(len(names))]
        measure = metrics.per_occupation_bias(shares, names, pairs, seed)
        values.append(measure.value)
        errors.append(measure.standard_error)
        floors.append(metrics.noise_floor(shares, names, pairs, seed, draws=100))
    assert 0.7 < np.mean(errors) / np.std(values) < 1.4
    # What a fair model of that spread would show: E|d| of a normal of twice the size, less with two sentences, of
    # which the coins show still less.
    expected = (single * 0.3 + (40 - single) * 0.3 / math.sqrt(2)) / 40 * math.sqrt(2 / math.pi)
    assert 0.6 < np.mean(floors) / expected < 1.1
