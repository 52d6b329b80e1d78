"""Batches of whole occupations."""

from collections import Counter

from peft_dso.training.sampler import OccupationSampler


NAMES = ["nurse"] * 12 + ["driver"] * 4 + ["farmer"] * 8


def test_blocks_are_whole_occupations_and_each_occupation_as_often():
    sampler = OccupationSampler(NAMES, size=4, batch_size=12)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 36  # three rounds: the nurse's twelve rows, once each
    blocks = [[NAMES[row] for row in rows[i : i + 4]] for i in range(0, 36, 4)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert Counter(block[0] for block in blocks) == {"nurse": 3, "driver": 3, "farmer": 3}
    assert Counter(rows[i] for i in range(36) if NAMES[rows[i]] == "nurse") == dict.fromkeys(range(12), 1)
    for i in range(0, 36, 12):
        assert len({NAMES[row] for row in rows[i : i + 12]}) == 3


def test_the_order_depends_on_the_seed_and_the_epoch():
    def order(seed, epoch):
        sampler = OccupationSampler(NAMES, 4, 12, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(1, 0)), tuple(order(2, 0)), tuple(order(1, 1))}) == 3
    assert list(OccupationSampler(NAMES, 4, 12, shuffle=False))[:4] == [12, 13, 14, 15]  # drivers first


def test_pairs_stay_together():
    pairs = [f"{name}{i // 2}" for i, name in enumerate(NAMES)]
    rows = list(OccupationSampler(NAMES, 4, 12, pairs=pairs))
    assert all(pairs[rows[i]] == pairs[rows[i + 1]] and rows[i] != rows[i + 1] for i in range(0, 36, 2))
    assert rows != list(OccupationSampler(NAMES, 4, 12, pairs=[None] * 24)) == list(OccupationSampler(NAMES, 4, 12))


def test_repeats():
    """TRL's layout: each question several times in a row, each batch several times."""
    plain = list(OccupationSampler(NAMES, 4, 12))
    sampler = OccupationSampler(NAMES, 4, 12, mini_repeat_count=2, repeat_count=3)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 36 * 6
    assert rows[:24] == rows[24:48] == rows[48:72] == [row for row in plain[:12] for _ in range(2)]


def test_an_occupation_smaller_than_a_block_repeats():
    rows = list(OccupationSampler(["nurse"] * 2 + ["driver"], size=4, batch_size=8))
    assert sorted(rows) == [0, 0, 1, 1, 2, 2, 2, 2]
