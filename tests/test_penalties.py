"""The l1 step, the KL and its multiplier, by plain arithmetic."""

import math

import pytest
import torch

from peft_dso.objective import given_or_not, kl_divergence, lost_kl, soft_threshold_, sparsity, updated_multiplier


def test_soft_threshold():
    x = torch.tensor([-1.0, -0.1, 0.0, 0.05, 0.1, 0.3])
    soft_threshold_([x], 0.1)
    torch.testing.assert_close(x, torch.tensor([-0.9, 0.0, 0.0, 0.0, 0.0, 0.2]))
    assert (x == 0).sum() == 4  # exactly
    soft_threshold_([x], 0.0)
    torch.testing.assert_close(x, torch.tensor([-0.9, 0.0, 0.0, 0.0, 0.0, 0.2]))


def test_soft_threshold_solves_the_proximal_problem():
    """argmin_z (z - x)^2 / 2 + t |z|, on a grid."""
    grid = torch.linspace(-2, 2, 40001)
    for x in (-1.3, -0.2, 0.0, 0.24, 0.9):
        best = grid[((grid - x) ** 2 / 2 + 0.25 * grid.abs()).argmin()]
        got = torch.tensor([x])
        soft_threshold_([got], 0.25)
        assert float(got) == pytest.approx(float(best), abs=2e-4)


def test_sparsity_counts_neurons_whose_slope_and_shift_are_zero():
    site = (torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, -2.0, 0.0]))
    assert sparsity([site, (torch.zeros(4),)]) == (6 / 8, 3.0)
    with pytest.raises(ValueError, match="no steered site"):
        sparsity([])


def test_kl_divergence():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    torch.testing.assert_close(kl_divergence(p.log(), q.log()), torch.tensor([expected, 0.0]))


def test_a_token_that_is_never_said_costs_nothing():
    """A model may mask tokens with logits of -inf, in both distributions."""
    logits = torch.tensor([0.3, -torch.inf, -0.7], requires_grad=True)
    base = torch.tensor([0.1, -torch.inf, 0.4]).log_softmax(-1)
    kl = kl_divergence(logits.log_softmax(-1), base)
    p, q = torch.tensor([0.3, -0.7]).softmax(-1), torch.tensor([0.1, 0.4]).softmax(-1)
    assert kl.item() == pytest.approx((p * (p / q).log()).sum().item())
    kl.backward()
    gradient = p * ((p / q).log() - kl.detach())
    torch.testing.assert_close(logits.grad, torch.stack([gradient[0], torch.tensor(0.0), gradient[1]]))
    assert kl_divergence(torch.zeros(1), torch.tensor([-torch.inf])) == torch.inf


def test_what_is_lost_costs_and_what_is_gained_does_not():
    base = torch.tensor([0.6, 0.4, 0.2, 1.0])
    p = torch.tensor([0.5, 0.5, 0.1, 1.0])
    lost = lost_kl(p.log(), base.log())
    first = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    third = 0.1 * math.log(0.1 / 0.2) + 0.9 * math.log(0.9 / 0.8)
    torch.testing.assert_close(lost, torch.tensor([first, 0.0, third, 0.0]))
    # A share of answers of which one question has fewer.
    logits = torch.tensor([[0.3, -0.7, 0.1], [0.3, -0.7, -torch.inf]], requires_grad=True)
    lost_kl(logits.log_softmax(-1)[:, 1], torch.tensor([0.4, 0.4]).log()).sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, :2] != 0).all()


def test_answers_are_given_or_not():
    log_p = torch.tensor([[0.2, 0.3], [0.25, 0.0], [0.7, 0.3000001]]).log().requires_grad_()
    found = given_or_not(log_p)
    torch.testing.assert_close(found[:2].exp(), torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
    assert found[2, 1] < -15 and found.isfinite().all()
    found.sum().backward()
    assert log_p.grad[[0, 0, 1, 2, 2], [0, 1, 0, 0, 1]].isfinite().all()


def test_the_multiplier_rises_above_the_cap_and_falls_below():
    assert updated_multiplier(1.0, kl=0.2, max_kl=0.1, rate=0.5) == pytest.approx(1.5)
    assert updated_multiplier(1.0, kl=0.05, max_kl=0.1, rate=0.5) == pytest.approx(0.75)
    assert updated_multiplier(1.0, kl=0.1, max_kl=0.1, rate=0.5) == 1.0
    assert updated_multiplier(1.0, kl=100.0, max_kl=0.1, rate=0.5) == pytest.approx(
        1.5
    )  # one outlier moves it no more
    assert updated_multiplier(0.1, kl=0.0, max_kl=0.1, rate=0.5) == 0.0
