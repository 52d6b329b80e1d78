"""Methods that are learned by gradient, and what holds for every method."""

import copy

import numpy as np
import pytest
import torch
from fitting import ROWS, SETTLED, TOKENIZER, heard, logits, model_of, texts
from peft import PeftModel

from peft_dso import find_sites
from peft_dso.baselines import (
    contrast,
    counterfactual_loss,
    fit_caa,
    fit_counterfactual,
    fit_iti,
    fit_linear_act,
    fit_lineas,
    joint_loss,
)
from peft_dso.baselines.activations import read_activations
from peft_dso.baselines.adapters import add_pairs, pairs_of, set_pair
from peft_dso.baselines.lineas import shrink_


# --- LinEAS ----------------------------------------------------------------------------------------------------------


def plain_lineas(model, sites):
    """Loss at the identity and its gradient by each slope and shift, with the later sites' dependence left to autograd
    of nothing: only for the last site, where there is none."""
    total, features, last = 0.0, 0, None
    for site in sites:
        module = model.get_submodule(site)
        source, target = (
            np.stack([heard(model, module, ids).mean(0) for ids in texts(meaning)]) for meaning in ("pro", "anti")
        )
        order = np.argsort(source, 0)
        rank = np.argsort(order, 0)
        difference = source - np.take_along_axis(np.sort(target, 0), rank, 0)  # of each source value to its partner
        total += (difference**2).sum()
        features += source.shape[1]
        last = (2 * (difference * source).sum(0), 2 * difference.sum(0))
    return total / features, tuple(gradient / features for gradient in last)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_lineas_loss_and_gradient_at_the_identity(name):
    plain = model_of(name)
    sites = [site.name for site in find_sites(plain)]
    loss, (slope, shift) = plain_lineas(plain, sites)
    fitted = add_pairs(model_of(name), sites)
    modules = {site: fitted.base_model.model.get_submodule(site) for site in sites}
    found = contrast(TOKENIZER, ROWS)
    ours = joint_loss(fitted, modules, found.negative, read_activations(fitted, modules, found.positive, at="mean"))
    assert ours.item() == pytest.approx(loss, rel=1e-4)
    ours.backward()
    last = pairs_of(fitted)[sites[-1]]
    # dT/da = h and dT/db = 1 at the last site, behind which nothing is steered.
    np.testing.assert_allclose(last.slope.grad, slope, atol=1e-5)
    np.testing.assert_allclose(last.shift.grad, shift, atol=1e-5)


def test_lineas_gradient_reaches_earlier_sites():
    """By finite differences, through everything behind the first site."""
    model = model_of("llama")
    sites = [site.name for site in find_sites(model)]
    fitted = add_pairs(model, sites)
    modules = {site: fitted.base_model.model.get_submodule(site) for site in sites}
    found = contrast(TOKENIZER, ROWS)
    target = read_activations(fitted, modules, found.positive, at="mean")
    first = pairs_of(fitted)[sites[0]]
    joint_loss(fitted, modules, found.negative, target).backward()
    values = []
    for step in (1e-2, -1e-2):
        set_pair(first, shift=torch.eye(16)[3] * step)
        values.append(joint_loss(fitted, modules, found.negative, target).item())
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(first.shift.grad[3].item(), rel=0.05)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_lineas_lowers_its_loss(optimizer):
    rate = {"adam": 2e-2, "sgd": 20.0}[optimizer]
    fitted = fit_lineas(
        model_of("llama"), TOKENIZER, ROWS, steps=80, batch_size=8, optimizer=optimizer, learning_rate=rate
    )
    modules = {site: fitted.base_model.model.get_submodule(site) for site in pairs_of(fitted)}
    found = contrast(TOKENIZER, ROWS)
    with fitted.steering_strength(0.0):
        target = read_activations(fitted, modules, found.positive, at="mean")
        before = joint_loss(fitted, modules, found.negative, target)
    assert joint_loss(fitted, modules, found.negative, target) < 0.8 * before


def test_lineas_with_a_strong_l1_is_exactly_nothing():
    fitted = fit_lineas(model_of("llama"), TOKENIZER, ROWS, steps=5, batch_size=8, l1=100.0)
    assert not any(p.any() for pair in pairs_of(fitted).values() for p in pair.parameters())
    some = fit_lineas(
        model_of("llama"), TOKENIZER, ROWS, steps=20, batch_size=8, optimizer="sgd", learning_rate=50, l1=0.02
    )
    zeros = torch.cat([(p == 0).float() for pair in pairs_of(some).values() for p in pair.parameters()]).mean()
    assert 0.05 < zeros < 0.95


def test_the_proximal_step():
    x = np.array([3.0, -1.0, 0.05, 0.4])
    soft = np.sign(x) * np.maximum(np.abs(x) - 0.5 * 0.2, 0)
    expected = soft * max(0.0, 1 - 0.5 * 0.3 * 2 / np.linalg.norm(soft))  # sqrt(4) = 2
    ours = torch.tensor(x)
    shrink_(ours, 0.5, 0.2, 0.3)
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    shrink_(ours, 0.5, 0.0, 100.0)
    assert not ours.any()


# --- counterfactual --------------------------------------------------------------------------------------------------


def test_the_counterfactual_loss():
    p = np.array([[0.5, 0.1, 0.0], [0.2, 0.3, 0.1]])
    log_p = torch.tensor(np.log(np.where(p > 0, p, 1))).masked_fill(torch.tensor(p == 0), -torch.inf).requires_grad_()
    group = torch.tensor([[0, 1, 0], [1, 0, 1]])
    # Two answers of one group count together; one that is not there does not count.
    by_group = np.array([[0.5, 0.1], [0.3, 0.3]])
    expected = -np.log(by_group).mean(1)
    ours = counterfactual_loss(log_p, group, 2)
    np.testing.assert_allclose(ours.detach(), expected, atol=1e-6)
    closed = counterfactual_loss(log_p, group, 2, "closed")
    np.testing.assert_allclose(closed.detach(), -np.log(by_group / by_group.sum(1, keepdims=True)).mean(1), atol=1e-6)
    (ours.sum() + closed.sum()).backward()
    assert log_p.grad.isfinite().all()


@pytest.mark.parametrize("adapter", ["lora", "pairs"])
@pytest.mark.parametrize("target", ["open", "closed"])
def test_counterfactual_fitting_makes_both_answers_likely(adapter, target):
    model = model_of("llama")
    base = copy.deepcopy(model)
    answers = [TOKENIZER(a, add_special_tokens=False)["input_ids"][0] for a in (" he", " she")]

    def said(m):
        p = torch.stack([logits(m, row["prompt"])[0, -1].softmax(-1)[answers] for row in ROWS])
        return (p[:, 0] - p[:, 1]).abs().div(p.sum(1)).mean(), -p.log().mean()

    fitted = fit_counterfactual(
        model, TOKENIZER, ROWS + SETTLED, adapter=adapter, target=target, epochs=150, batch_size=8,
        questions_per_occupation=2, learning_rate=5e-3, dropout=0.0, retain_batch_size=4, retain_coef=0.1, bf16=False,
    )  # fmt: skip
    (lean, cross_entropy), before = said(fitted), said(base)
    assert before[0] > 0.3
    if target == "closed":
        assert lean < 0.1
    else:  # so small a model cannot leave all of its probability to two words
        assert cross_entropy < before[1] - 0.5 and lean < before[0]
    if adapter == "lora":
        with fitted.disable_adapter():
            assert torch.equal(logits(fitted), logits(base))
    else:
        with fitted.steering_strength(0.0):
            assert torch.equal(logits(fitted), logits(base))


def test_retention_holds_the_model_to_the_base():
    base, kls = model_of("llama"), []
    for coef in (0.0, 3.0):
        fitted = fit_counterfactual(
            model_of("llama"), TOKENIZER, ROWS + SETTLED, adapter="pairs", epochs=60, batch_size=8,
            questions_per_occupation=2, learning_rate=5e-3, retain_batch_size=4, retain_coef=coef, bf16=False,
        )  # fmt: skip
        p, q = (
            torch.stack([logits(m, row["prompt"])[0, -1].log_softmax(-1) for row in SETTLED]) for m in (fitted, base)
        )
        kls.append((p.exp() * (p - q)).sum(-1).mean())
    assert kls[1] < 0.5 * kls[0]


# --- all of them -----------------------------------------------------------------------------------------------------

FITS = {
    "caa": lambda m: fit_caa(m, TOKENIZER, ROWS, layer=1),
    "caa-residual": lambda m: fit_caa(m, TOKENIZER, ROWS, variant="residual", layer=0),
    "iti": lambda m: fit_iti(m, TOKENIZER, ROWS),
    "linear-act": lambda m: fit_linear_act(m, TOKENIZER, ROWS),
    "lineas": lambda m: fit_lineas(m, TOKENIZER, ROWS, steps=3, batch_size=8),
    "counterfactual": lambda m: fit_counterfactual(
        m, TOKENIZER, ROWS, epochs=1, batch_size=8, questions_per_occupation=2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FITS))
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_each_is_an_adapter_that_peft_saves_and_loads(name, architecture, tmp_path):
    fitted = FITS[name](model_of(architecture))
    assert (logits(fitted) - logits(model_of(architecture))).abs().max() > 1e-4
    fitted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(model_of(architecture), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(fitted))
    with pytest.raises(ValueError, match="adapter already"):
        FITS[name](fitted)


@pytest.mark.parametrize("name", list(FITS))
def test_a_seed_gives_the_same_fit_again(name):
    assert torch.equal(logits(FITS[name](model_of("llama"))), logits(FITS[name](model_of("llama"))))
