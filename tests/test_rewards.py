"""The fairness reward against arithmetic in the open."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_dso import FairnessReward
from peft_dso.objective import EnumeratedReward, group_rewards, imbalance, occupation_shares, occupation_weights


def completions(reward, answered, **more):
    """Call a reward with (occupation, text) pairs about he (pro) and she (anti)."""
    n = len(answered)
    return reward(
        ["?"] * n, [text for _, text in answered], occupation=[o for o, _ in answered],
        answers=[[" he", " she"]] * n, meanings=[["pro", "anti"]] * n, **more,
    )  # fmt: skip


def test_the_sign_is_the_papers_reward():
    """-1 for the status that the model gives most often for the occupation, +1 for the other."""
    reward = FairnessReward(smoothing=0)
    got = completions(
        reward, [("nurse", "he"), ("nurse", "he"), ("nurse", "she"), ("driver", "she"), ("driver", "they")]
    )
    assert got == [-1, -1, 1, -1, -1]
    assert reward.shares("nurse") == [2 / 3, 1 / 3] and reward.shares("driver") == [0, 1]
    assert reward.bias() == pytest.approx((1 / 3 + 1) / 2)


def test_abstaining():
    for value, expected in ((-1.0, -1.0), (1.0, 1.0), (0.0, 0.0), (None, None)):
        assert (
            completions(FairnessReward(abstain_reward=value), [("nurse", "they"), ("nurse", "he or she")])
            == [expected] * 2
        )


def test_the_reward_shrinks_near_balance():
    # imbalances 0.05 and -0.02 at a smoothing of 0.1, and one that is cut off
    shares = torch.tensor([[0.525, 0.475], [0.49, 0.51], [0.9, 0.1]])
    expected = torch.tensor([[-0.5, 0.5], [0.2, -0.2], [-1.0, 1.0]])
    torch.testing.assert_close(group_rewards(shares, 0.1), expected)
    torch.testing.assert_close(group_rewards(shares), torch.tensor([[-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]]))
    assert group_rewards(torch.tensor([0.5, 0.5])).tolist() == [0, 0]


def test_more_than_two_groups():
    """r(y in g) = -sign(p_g - 1/k)."""
    reward = FairnessReward(("a", "b", "c", "d"), smoothing=0)
    rows = ["one"] * 5 + ["two"] * 3
    got = reward(
        ["?"] * 8, rows, occupation=["nurse"] * 8,
        answers=[["one", "two", "three", "four"]] * 8, meanings=[["a", "b", "c", "d"]] * 8,
    )  # fmt: skip
    assert got == [-1] * 8
    assert group_rewards(torch.tensor(reward.shares("nurse"))).tolist() == [-1, -1, 1, 1]
    torch.testing.assert_close(imbalance(torch.tensor(reward.shares("nurse"))), torch.tensor(5 / 8 + 3 / 8))


def test_conversational_completions_and_rows_with_a_right_answer():
    reward = FairnessReward(smoothing=0)
    got = reward(
        [[{"role": "user", "content": "?"}]] * 2, [[{"role": "assistant", "content": "he"}]] * 2,
        occupation=["nurse"] * 2, answers=[["he", "she"]] * 2, meanings=[["pro", "anti"]] * 2, right=[None, 0],
    )  # fmt: skip
    assert got == [-1, 0]
    assert reward.counts == {"nurse": [1, 0]}  # a row with a right answer says nothing about the lean


def test_memory_is_a_running_estimate():
    reward = FairnessReward(memory=0.5)
    completions(reward, [("nurse", "he")] * 4)
    completions(reward, [("driver", "he")])
    completions(reward, [("nurse", "she")])
    assert reward.counts == {"nurse": [1.0, 1.0], "driver": [0.5, 0.0]}
    assert reward.shares("nurse") == [0.5, 0.5] and reward.shares("unseen") == [0.5, 0.5]
    warm = FairnessReward(memory=0.5)
    warm.observe([("nurse", [8, 0])])  # a first pass
    assert completions(warm, [("nurse", "she")]) == [1.0]


def test_it_survives_a_checkpoint():
    reward = FairnessReward()
    completions(reward, [("nurse", "he")])
    other = FairnessReward()
    other.load_state_dict(reward.state_dict())
    assert other.counts == reward.counts and other.counts["nurse"] is not reward.counts["nurse"]
    with pytest.raises(ValueError, match="counts"):
        FairnessReward(("a", "b")).load_state_dict(reward.state_dict())


def test_questions_of_one_group_say_nothing_about_fairness():
    """One pro and two anti where both can be said: anti is the majority, however often pro is all that can be said."""
    reward, logged = FairnessReward(smoothing=0, memory=0.5), {}
    said = ["A", "B", "A"] + ["A", "B", "A", "nobody"]
    meanings = [["pro", "anti"], ["pro", "anti"], ["anti", "pro"]] + [["pro", "pro"]] * 4
    got = reward(
        ["?"] * 7, said, occupation=["welder"] * 7, answers=[["A", "B"]] * 7, meanings=meanings,
        log_metric=logged.__setitem__,
    )  # fmt: skip
    assert got == [1, -1, -1, 0, 0, 0, 0]
    assert reward.counts == {"welder": [1, 2]} and len(reward.latest) == 3
    assert logged == {"abstention": 0, "per_occupation_bias": pytest.approx(1 / 3)}
    reward.observe([("welder", [9, 0]), ("nurse", [9, 0])], [[True, False]] * 2)  # nothing but a step forgotten
    assert reward.counts == {"welder": [0.5, 1]} and reward.latest == []
    assert completions(FairnessReward(), [("nurse", "he"), ("nurse", "she")]) == [0, 0]


def test_the_fair_shares_are_those_of_the_questions_that_were_counted():
    """a or b 4 times, of which half is forgotten, and b or c twice, each as often as the other: 1, 2 and 1 of 4."""
    reward = FairnessReward(("a", "b", "c"), memory=0.5)
    reward.observe([("nurse", [2, 2, 0])], [[True, True, False]])
    assert reward.fair("nurse") == [0.5, 0.5, 0] and reward.bias() == 0
    reward.observe([("nurse", [0, 1, 1])], [[False, True, True]])
    assert reward.shares("nurse") == reward.fair("nurse") == [0.25, 0.5, 0.25] and reward.bias() == 0
    assert reward.bias_of(reward.latest) == 0 and reward.fair("unseen") == [1 / 3] * 3
    other = FairnessReward(("a", "b", "c"))
    other.load_state_dict(reward.state_dict())
    assert other.due == reward.due and other.due["nurse"] is not reward.due["nurse"]


def test_weights_make_occupations_count_the_same():
    weights = occupation_weights(["nurse"] * 6 + ["driver"] * 2)
    assert weights == {"nurse": 8 / 12, "driver": 8 / 4}  # N / (K n_o)
    assert completions(FairnessReward(smoothing=0, weights=weights), [("nurse", "he"), ("driver", "she")]) == [
        -8 / 12,
        -2,
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(1, 5)), min_size=1, max_size=6))
def test_theorem_1(occupations):
    """
    With the same weight for each occupation, the expected reward is minus the per-occupation bias, whatever the number
    of samples of each: E[r | o] = -|p_pro - p_anti|, by plain arithmetic.
    """
    rows = [(i, p) for i, (p, n) in enumerate(occupations) for _ in range(n)]
    weights = occupation_weights([str(i) for i, _ in rows])
    probabilities = torch.tensor([[p, 1 - p] for _, p in rows], dtype=torch.float64)
    shares = occupation_shares(probabilities, torch.tensor([i for i, _ in rows]), len(occupations))
    total = 0.0
    for (i, _), p in zip(rows, probabilities, strict=False):
        total += weights[str(i)] * float((p * group_rewards(shares[i])).sum())
    bias = sum(abs(p - (1 - p)) for p, _ in occupations) / len(occupations)
    assert total / len(rows) == pytest.approx(-bias, abs=1e-9)


def test_the_order_of_answers_does_not_matter():
    answers = [("nurse", "he")] * 3 + [("nurse", "she")] * 2 + [("driver", "she")]
    first = dict(zip(answers, completions(FairnessReward(), answers), strict=False))
    random.Random(0).shuffle(answers)
    assert dict(zip(answers, completions(FairnessReward(), answers), strict=False)) == first


def test_trl_gets_metrics():
    logged, extra = {}, {}
    completions(
        FairnessReward(), [("nurse", "he"), ("nurse", "they")],
        log_metric=logged.__setitem__, log_extra=extra.__setitem__,
    )  # fmt: skip
    assert logged == {"abstention": 0.5, "per_occupation_bias": 1.0}
    assert extra == {"occupation": ["nurse", "nurse"], "status": ["pro", "abstain"]}


@pytest.mark.parametrize(
    "wrong", [{"groups": ("pro",)}, {"groups": ("a", "a")}, {"smoothing": 3}, {"smoothing": -1}, {"memory": 1}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FairnessReward(**wrong)


def test_an_unknown_meaning_is_refused():
    with pytest.raises(ValueError, match="'neutral'"):
        FairnessReward()(["?"], ["he"], occupation=["nurse"], answers=[["he", "she"]], meanings=[["neutral", "pro"]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_expectation_is_in_the_precision_of_the_probabilities(dtype):
    """Two questions of one occupation, 0.7 to 0.2 and 0.3 to 0.5: pro leads by 0.3 of 1.7."""
    rows = [{"occupation": "nurse", "meanings": ["pro", "anti"]}] * 2
    p = torch.tensor([[0.7, 0.2], [0.3, 0.5]], dtype=dtype)
    got = EnumeratedReward(("pro", "anti"), [1.0], -1.0, smoothing=1.0, question_share=0.25)(rows, p.log())
    lean, own = 0.3 / 1.7, (0.5 / 0.9, -0.2 / 0.8)
    expected = [
        -(0.75 * lean + 0.25 * mine) * (pro - anti) - (1 - pro - anti)
        for mine, (pro, anti) in zip(own, ((0.7, 0.2), (0.3, 0.5)), strict=True)
    ]
    assert got.dtype == dtype
    assert got.tolist() == pytest.approx(expected, abs=1e-12 if dtype == torch.float64 else 1e-6)
