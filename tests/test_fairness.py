"""The fair distribution nearest to the base, the expectation of the reward, and units of slope and shift."""

import math

import pytest
import torch
from torch import nn

from peft_dso.objective import EnumeratedReward, group_log_masses, group_rewards, nearest_fair
from peft_dso.questions import question_groups
from peft_dso.training.units import ScaledSteps
from peft_dso.tuner import fisher_information, fisher_units, output_unit, shift_unit


def kl(p, q):
    return float((p * (p / q).log()).sum())


def test_the_least_kl_of_two_groups_is_the_formula():
    """M (-ln(4 p q) / 2), and the distribution that has it: both groups M / 2, all else as it was."""
    base = torch.tensor([[0.30, 0.05, 0.40, 0.25]])  # pro, anti, two other words
    least, reward = nearest_fair(base[:, :2].log())
    p, q, mass = 0.30 / 0.35, 0.05 / 0.35, 0.35
    assert least.item() == pytest.approx(mass * -math.log(4 * p * q) / 2, rel=1e-6)
    fair = torch.tensor([0.175, 0.175, 0.40, 0.25])
    assert least.item() == pytest.approx(kl(fair, base[0]), rel=1e-5)
    tilted = base[0].clone()
    tilted[:2] *= reward[0].exp()
    assert torch.allclose(tilted / tilted.sum(), fair, atol=1e-6)


def test_no_fair_distribution_of_the_same_mass_is_nearer():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(5, generator=generator).softmax(0)
    least, _ = nearest_fair(base[None, :3].log())
    logits = torch.zeros(2, requires_grad=True)  # what is left, of any shape
    optimizer = torch.optim.Adam([logits], 0.05)
    mass = base[:3].sum()
    for _ in range(400):
        q = torch.cat([(mass / 3).expand(3), (1 - mass) * logits.softmax(0)])
        cost = (q * (q / base).log()).sum()
        optimizer.zero_grad(), cost.backward(), optimizer.step()
    assert least.item() == pytest.approx(cost.item(), rel=1e-4)


def test_the_reward_is_what_makes_the_kl_penalised_optimum_fair():
    """arg max E[r] - KL(. || base), found by gradient ascent over all distributions."""
    base = torch.tensor([0.5, 0.1, 0.3, 0.1])
    _, reward = nearest_fair(base[None, :2].log())
    r = torch.cat([reward[0], torch.zeros(2)])
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(500):
        q = logits.softmax(0)
        loss = -(q * r).sum() + (q * (q / base).log()).sum()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert torch.allclose(q.detach(), torch.tensor([0.3, 0.3, 0.3, 0.1]), atol=2e-3)


def test_a_group_that_is_not_offered_costs_nothing_and_earns_nothing():
    log_p = torch.tensor([[0.2, 0.1, 0.1]]).log()
    masses = group_log_masses(log_p, torch.tensor([[0, 2, 2]]), 3)
    assert torch.allclose(masses.exp(), torch.tensor([[0.2, 0.0, 0.2]]))
    least, reward = nearest_fair(masses)
    assert least.item() == pytest.approx(0, abs=1e-7) and reward.abs().max() < 1e-6
    assert group_rewards(torch.tensor([[0.5, 0.0, 0.5]]), 0.1, torch.tensor([[0.5, 0.0, 0.5]])).abs().max() < 1e-6


def test_masses_of_an_absent_group_send_back_no_nan():
    log_p = torch.tensor([[0.2, 0.1]]).log().requires_grad_()
    masses = group_log_masses(log_p, torch.tensor([[0, 0]]), 2)
    masses[:, 0].sum().backward()
    assert torch.allclose(log_p.grad, torch.tensor([[2 / 3, 1 / 3]]))
    assert masses[0, 1] == -math.inf


ROWS = [
    {"occupation": "nurse", "meanings": ["pro", "anti"]},
    {"occupation": "nurse", "meanings": ["anti", "pro"]},
    {"occupation": "driver", "meanings": ["pro", "anti"]},
]


def test_the_expected_reward_and_its_gradient():
    """At temperatures 1 and 0.5, a half by question, against the formulas written out."""
    log_p = torch.tensor([[0.4, 0.1], [0.2, 0.2], [0.1, 0.3]]).log().requires_grad_()
    expected = EnumeratedReward(("pro", "anti"), (1.0, 0.5), smoothing=0.3, question_share=0.5)(ROWS, log_p)
    by_hand = torch.zeros(3)
    p0 = log_p.detach().exp()
    for temperature in (1.0, 0.5):
        p = p0 ** (1 / temperature)
        p = p / p.sum(1, keepdim=True)
        lean = [p[0, 0] - p[0, 1], p[1, 1] - p[1, 0], p[2, 0] - p[2, 1]]  # pro less anti
        m = {"nurse": (lean[0] + lean[1]) / 2, "driver": lean[2]}
        for i, row in enumerate(ROWS):
            pay = -sum(0.5 * max(-1.0, min(1.0, float(x) / 0.3)) for x in (m[row["occupation"]], lean[i]))
            by_hand[i] += lean[i] * pay / 2
    assert torch.allclose(expected.detach(), by_hand, atol=1e-6)
    expected.sum().backward()
    # Rewards are held fixed: the gradient of p_pro - p_anti = tanh((l_pro - l_anti) / 2T) times its reward.
    total = torch.zeros(3, 2)
    for temperature in (1.0, 0.5):
        q = log_p.detach().requires_grad_()
        p = (q / temperature).softmax(1)
        lean = torch.stack([p[0, 0] - p[0, 1], p[1, 1] - p[1, 0], p[2, 0] - p[2, 1]])
        m = torch.stack([(lean[0] + lean[1]) / 2] * 2 + [lean[2]])
        pay = -0.5 * ((m / 0.3).clamp(-1, 1) + (lean / 0.3).clamp(-1, 1)).detach()
        total += torch.autograd.grad((lean * pay).sum() / 2, q)[0]
    assert torch.allclose(log_p.grad, total, atol=1e-6)


@pytest.mark.parametrize(
    "meanings",
    [
        [("anti", "anti"), ("anti", "pro"), ("pro", "anti")],
        [("a", "b"), ("a", "b"), ("a", "c"), ("b", "c")],
        [("a", "b", "c"), ("a", "b"), ("c", "c"), ("b", "a", "a"), ("b", "c")],
    ],
)
def test_each_question_is_measured_over_the_groups_that_it_offers(meanings):
    """The bias and the reward of some answers by plain loops; answers that give all groups the same earn nothing."""
    rows = [{"occupation": "welder", "meanings": list(m)} for m in meanings]
    generator = torch.Generator().manual_seed(0)
    for fair in (True, False):
        p = torch.zeros(len(rows), max(map(len, meanings)))
        for i, m in enumerate(meanings):
            drawn = torch.rand(len(m), generator=generator)
            p[i, : len(m)] = torch.tensor([1 / m.count(g) for g in m]) if fair else drawn
            p[i] /= p[i].sum()
        counted = [i for i, m in enumerate(meanings) if len(set(m)) > 1]
        leans = dict.fromkeys(question_groups(rows), 0.0)
        for i in counted:
            for g, share in zip(meanings[i], p[i].tolist(), strict=False):
                leans[g] += share / len(counted)
            for g in set(meanings[i]):
                leans[g] -= 1 / len(set(meanings[i])) / len(counted)
        log_p = p.log().requires_grad_()
        reward = EnumeratedReward(tuple(leans), smoothing=0.3)
        expected = reward(rows, log_p)
        bias = sum(map(abs, leans.values()))
        assert reward.counts[0].bias() == pytest.approx(bias, abs=1e-6) and (bias > 0.01) != fair
        assert reward.counts[0].bias_of(reward.counts[0].latest) == pytest.approx(bias, abs=1e-6)
        for i, m in enumerate(meanings):
            pay = [-max(-1, min(1, 2 * leans[g] / 0.3)) for g in m] if i in counted else [0] * len(m)
            by_hand = sum(x * y for x, y in zip(p[i].tolist(), pay, strict=False))
            assert expected[i].item() == pytest.approx(by_hand, abs=1e-5)
        expected.sum().backward()
        assert bool((log_p.grad.nan_to_num().abs() > 1e-5).any()) != fair
        assert all(log_p.grad[i].abs().nan_to_num().max() == 0 for i in range(len(rows)) if i not in counted)


def test_what_is_not_named_costs_where_fairness_can_be_shown():
    rows = [{"occupation": "welder", "meanings": m} for m in (["pro", "anti"], ["anti", "anti"])]
    log_p = torch.full((2, 2), math.log(0.3))
    assert EnumeratedReward(("pro", "anti"), abstain_reward=-1.0)(rows, log_p).tolist() == pytest.approx([-0.4, 0])


def test_a_step_is_scaled_by_its_unit_and_by_nothing_else():
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([a, b], 0.1)
    ScaledSteps(optimizer, lambda: [(b, torch.tensor([1.0, 10.0, 0.5]))])
    for _ in range(3):
        optimizer.zero_grad()
        (a + b).sum().backward()
        optimizer.step()
    assert torch.allclose(1 - b.detach(), (1 - a.detach()) * torch.tensor([1.0, 10.0, 0.5]), rtol=1e-5)


class OneMore(nn.Module):
    """A norm that multiplies by 1 + weight, as Gemma's."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 3.0, -0.999]))

    def forward(self, x):
        return x * (1 + self.weight)


def test_the_unit_of_a_shift_is_the_gain():
    norm = nn.RMSNorm(3)
    norm.weight.data = torch.tensor([-2.0, 0.5, 0.001])
    size = math.sqrt((4 + 0.25 + 1e-6) / 3)
    assert torch.allclose(shift_unit(norm), torch.tensor([2.0, 0.5, 0.1 * size]))
    assert torch.allclose(shift_unit(OneMore()), torch.tensor([1.0, 4.0, 0.1 * math.sqrt((1 + 16 + 1e-6) / 3)]))
    assert torch.equal(shift_unit(nn.LayerNorm(4, elementwise_affine=False)), torch.ones(4))


def test_the_unit_of_a_shift_is_measured_on_the_norm_s_output():
    """Against plain arithmetic: the root mean square over all rows of all calls, at least a tenth of the median."""
    calls = [torch.tensor([[[3.0, 0.0, 1.0, 10.0]], [[1.0, 0.0, 2.0, 20.0]]]), torch.tensor([[-2.0, 0.0, 2.0, 0.0]])]
    norm, unused, dead = nn.Identity(), nn.RMSNorm(3), nn.Identity()

    def run():
        for x in calls:
            assert norm(x) is x  # what passes is left alone
        dead(torch.zeros(2, 2))

    found = output_unit([norm, unused, dead], run)
    sizes = [math.sqrt((9 + 1 + 4) / 3), math.sqrt((1 + 4 + 4) / 3), math.sqrt((100 + 400) / 3)]
    expected = torch.tensor([sizes[0], 0.1 * sizes[0], sizes[1], sizes[2]])  # the middle one of three
    assert torch.allclose(found[0], expected)
    assert torch.equal(found[1], torch.ones(3))  # not called: its gain
    assert torch.equal(found[2], torch.ones(2))  # no size at all
    with pytest.raises(ZeroDivisionError):
        output_unit([norm], lambda: 1 / 0)
    assert not norm._forward_hooks  # none is left, whatever happens


class Chain(nn.Module):
    """Two norms, the second called twice, before five tokens; slopes and shifts are arguments."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norms = nn.ModuleList([nn.RMSNorm(4), nn.LayerNorm(4)])
        self.between, self.head = (torch.randn(n, 4, generator=generator) for n in (4, 5))
        self.x = torch.randn(6, 4, generator=generator)
        self.requires_grad_(False)

    def forward(self, pairs=((0.0, 0.0), (0.0, 0.0))):
        (a, b), (c, d) = pairs
        x = self.norms[0](self.x)
        x = torch.tanh((x + (a * x + b)).cumsum(0) @ self.between.T)
        for _ in range(2):
            x = self.norms[1](x)
            x = x + (c * x + d)
        return (x @ self.head.T).log_softmax(-1)


def test_what_slopes_and_shifts_cost_is_the_fisher_information():
    """Against the definition: all tokens, all that could come next, one derivative after the other."""
    model, unused = Chain(), nn.RMSNorm(3)
    zeros = [torch.zeros(4, requires_grad=True) for _ in range(4)]
    log_p = model((zeros[:2], zeros[2:]))
    expected = [torch.zeros(4) for _ in zeros]
    for t in range(6):
        for y in range(5):
            gradients = torch.autograd.grad(log_p[t, y], zeros, retain_graph=True)
            for total, g in zip(expected, gradients, strict=True):
                total += log_p[t, y].exp().detach() * g.square() / 6
    with torch.no_grad():  # as a trainer's callbacks are
        found = fisher_information([*model.norms, unused], [model] * 4000)
    for one, other in zip([f for both in found[:2] for f in both], expected, strict=True):
        assert torch.allclose(one, other, rtol=0.15)
    assert all(torch.equal(f, torch.zeros(3)) for f in found[2])
    assert not any(norm._forward_hooks for norm in model.norms)


def test_a_step_costs_the_same_whatever_it_moves():
    """r units in random directions cost r^2 nats, of all vectors together and of each in its share."""
    model = Chain()
    information = fisher_information(model.norms, [model] * 4000)
    units = fisher_units(information, damping=0.0)
    base = model()

    def cost(scales):
        found, generator = [], torch.Generator().manual_seed(1)
        for _ in range(400):
            signs = [torch.randint(2, (4,), generator=generator) * 2.0 - 1 for _ in scales]
            step = [0.05 * scales[n] * signs[n] * units[n // 2][n % 2] for n in range(4)]
            log_p = model((step[:2], step[2:]))
            found.append((base.exp() * (base - log_p)).sum(-1).mean())
        return torch.stack(found).mean().item()

    assert cost([1, 1, 1, 1]) == pytest.approx(0.05**2, rel=0.2)
    for n in range(4):
        assert cost([float(n == m) for m in range(4)]) == pytest.approx(0.05**2 / 4, rel=0.2)


def test_units_of_what_was_not_seen():
    seen = torch.tensor([1.0, 4.0, 0.0])
    (slope, shift), (other, _) = fisher_units([(seen, seen), (torch.zeros(2), seen)], damping=0.5)
    floor = 0.25 * 5 / 3
    expected = [math.sqrt(2 / (11 * (f + floor))) for f in (1, 4, 0)]  # 11 entries
    assert torch.allclose(slope, torch.tensor(expected)) and torch.equal(slope, shift)
    assert torch.allclose(other, torch.full((2,), expected[0]))  # the median of the others
    assert torch.equal(fisher_units([(torch.zeros(2), torch.zeros(2))])[0][0], torch.ones(2))


def test_a_preference_for_a_place_is_no_stereotype():
    """Either answer stands first in one question of a pair: what counts is the mean of the pair, by occupation."""
    p = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.9, 0.1]])  # the first answer, the second
    rows = [
        {"occupation": o, "answers": ["a", "b"], "meanings": m, "pair": "one", "first": 0}
        for o, m in (("nurse", ["pro", "anti"]), ("nurse", ["anti", "pro"]), ("cook", ["pro", "anti"]))
    ]
    rows.append({"occupation": "nurse", "answers": ["a", "b"], "meanings": ["pro", "anti"], "pair": None, "first": 0})
    reward = EnumeratedReward(("pro", "anti"), smoothing=2.0, question_share=1.0)
    shares = [(0.8, 0.2), (0.3, 0.7), (0.6, 0.4), (0.9, 0.1)]  # pro, anti
    deviations = [(0.8 + 0.3) - 1] * 2 + [2 * 0.6 - 1, 2 * 0.9 - 1]  # p_pro - p_anti
    expected = [-d / 2 * (a - b) for d, (a, b) in zip(deviations, shares, strict=True)]
    assert reward(rows, p.log()).tolist() == pytest.approx(expected, abs=1e-6)
    anywhere = [{**row, "first": None} for row in rows]  # no place: each question's own
    assert reward(anywhere, p.log())[1] == pytest.approx(0.4 / 2 * (0.7 - 0.3) * -1)

    tilt, least = reward.tilt(rows, p.log(), p.log())
    pro = [math.log(0.5 / x) for x in (0.8, 0.3, 0.6, 0.9)]
    anti = [math.log(0.5 / x) for x in (0.2, 0.7, 0.4, 0.1)]
    pro[:2], anti[:2] = [sum(pro[:2]) / 2] * 2, [sum(anti[:2]) / 2] * 2
    # The answers keep their sum, which is 1 here.
    over = [math.log(x * math.exp(a) + y * math.exp(b)) for (x, y), a, b in zip(shares, pro, anti, strict=True)]
    wanted = [x * a + y * b - c for (x, y), a, b, c in zip(shares, pro, anti, over, strict=True)]
    assert tilt.tolist() == pytest.approx(wanted, abs=1e-5)
    assert least.tolist() == pytest.approx([-math.log(4 * x * y) / 2 for x, y in shares], rel=1e-5)


def test_a_pair_that_is_fair_is_left_as_it_is():
    """Whatever it prefers for its place, and however often each order was drawn; nothing is won by abstaining less."""
    log_p = torch.tensor([[0.72, 0.08], [0.72, 0.08], [0.72, 0.08]]).log()
    orders = [["pro", "anti"], ["anti", "pro"], ["anti", "pro"]]
    rows = [{"occupation": "nurse", "meanings": m, "pair": "one", "first": 0} for m in orders]
    reward = EnumeratedReward(("pro", "anti"), smoothing=2.0, question_share=1.0)
    assert reward(rows, log_p).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    tilt, _ = reward.tilt(rows, torch.tensor([[0.3, 0.1]] * 3).log(), log_p)
    assert tilt.tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    # The tilt of a pair is cut off, not those that it is the mean of: log-odds of 30 and -28 are a lean of 1.
    odds = torch.tensor([[15.0, -15.0], [14.0, -14.0]])
    tilt, _ = reward.tilt(rows[:2], torch.full((2, 2), 0.5).log(), odds.log_softmax(-1))
    change = [
        math.log(math.exp(x + s) + math.exp(-x - s)) - math.log(2 * math.cosh(x)) for x, s in ((15, -0.5), (14, 0.5))
    ]
    assert tilt.tolist() == pytest.approx([-c for c in change], abs=1e-4)
    # Rows that offer other groups are no part of it.
    three = [{**rows[0], "meanings": ["a", "b"]}, {**rows[0], "meanings": ["c", "a"]}]
    even = torch.full((2, 2), 0.5).log()
    assert EnumeratedReward(("a", "b", "c"), smoothing=2.0, question_share=1.0)(three, even).tolist() == [0, 0]


@pytest.mark.parametrize("lean", [0.0, 20.0])
def test_a_place_makes_fair_no_more_than_the_base_prefers_it(lean):
    """
    Log-odds of pro against anti of 2 where pro stands first and of 1 where anti does: a lean of 1.5, and 0.5 for the
    first place, which alone is left of a fair model, whatever the lean. Saying always the first is not fair.
    """

    def log_p(odds):
        return torch.tensor([odds], dtype=torch.float64).T.mul(torch.tensor([[0.5, -0.5]])).log_softmax(-1)

    def share(odds):
        return 1 / (1 + math.exp(-odds))

    rows = [{"occupation": "nurse", "meanings": ["pro", "anti"], "pair": "one", "first": first} for first in (0, 1)]
    rows.append({**rows[0], "pair": None})
    base = log_p([2.0 + lean, 1.0 + lean, 2.0 + lean])
    reward = EnumeratedReward(("pro", "anti"), smoothing=2.0, question_share=1.0)
    fair = log_p([0.5, -0.5, 0.0])
    assert reward(rows, fair, base).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    said = (4.0, -4.0, 4.0)
    earned = reward(rows, log_p(list(said)), base)
    wanted = [(share(f) - share(o)) * (2 * share(o) - 1) for o, f in zip(said, (0.5, -0.5, 0.0), strict=True)]
    assert earned.tolist() == pytest.approx(wanted, rel=1e-4) and max(wanted) < -0.1
    colder = EnumeratedReward(("pro", "anti"), [0.5], smoothing=2.0, question_share=1.0)  # the mean of the pair
    assert colder(rows, log_p(list(said)), base).tolist()[:2] == pytest.approx([0, 0], abs=1e-6)
