"""The baselines against plain computations of their own: numpy on activations that hooks of the test read."""

import re

import numpy as np
import pytest
import torch
from fitting import ROWS, SETTLED, TOKENIZER, heard, logits, model_of, texts, token_ids
from peft.helpers import rescale_adapter_scale

from peft_dso import find_sites
from peft_dso.baselines import (
    contrast,
    fit_caa,
    fit_iti,
    fit_linear_act,
    transport_map,
)
from peft_dso.baselines.activations import read_activations
from peft_dso.baselines.adapters import pairs_of
from peft_dso.baselines.iti import projected
from peft_dso.baselines.places import attention_outputs, block_norms


# --- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt"])
def test_activations_are_those_of_each_text_alone(name):
    model = model_of(name)
    found = contrast(TOKENIZER, ROWS)
    sites = {site.name: model.get_submodule(site.name) for site in find_sites(model)}
    for at in ("last", "mean"):
        together = read_activations(model.train(), sites, found.negative, at=at)
        assert model.training
        model.eval()
        for site, values in together.items():
            for ids, value in zip(texts("pro"), values, strict=True):
                alone = heard(model, sites[site], ids)
                np.testing.assert_allclose(value, alone[-1] if at == "last" else alone.mean(0), atol=1e-5)


def test_a_module_that_is_not_run_is_named():
    model = model_of("llama")
    with pytest.raises(ValueError, match="unused"):
        read_activations(model, {"unused": torch.nn.LayerNorm(16)}, contrast(TOKENIZER, ROWS).positive)


# --- CAA -------------------------------------------------------------------------------------------------------------


def plain_difference(model, module, rows=ROWS):
    positive, negative = (
        np.stack([heard(model, module, ids)[-1] for ids in texts(meaning, rows)]) for meaning in ("anti", "pro")
    )
    return (positive - negative).mean(0)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_caa_at_norms_is_the_mean_difference(name):
    model, plain = model_of(name), model_of(name)
    fitted = fit_caa(model, TOKENIZER, ROWS, layer=1)
    block = list(block_norms(plain))[1]
    assert sorted(pairs_of(fitted)) == sorted(block_norms(plain)[block])
    for site, pair in pairs_of(fitted).items():
        assert not pair.slope.any()
        np.testing.assert_allclose(pair.shift.detach(), plain_difference(plain, plain.get_submodule(site)), atol=1e-5)


def test_caa_swapped_is_negative():
    swapped = [{**row, "meanings": row["meanings"][::-1]} for row in ROWS]
    one, other = (fit_caa(model_of("llama"), TOKENIZER, rows, layer=1) for rows in (ROWS, swapped))
    for site, pair in pairs_of(one).items():
        assert pair.shift.abs().max() > 1e-3
        assert torch.allclose(pair.shift, -pairs_of(other)[site].shift, atol=1e-7)


def test_caa_equals_steering_vectors():
    """Install it without its dependencies: pip install --no-deps steering-vectors==0.12.2"""
    library = pytest.importorskip("steering_vectors")
    model = model_of("llama")
    samples = [
        tuple(row["prompt"] + row["answers"][row["meanings"].index(meaning)] for meaning in ("anti", "pro"))
        for row in ROWS
    ]
    fitted = fit_caa(model_of("llama"), TOKENIZER, ROWS, layer=1)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        theirs = library.train_steering_vector(
            model,
            TOKENIZER,
            samples,
            layer_config={"decoder_block": f"model.layers.{{num}}.{norm}"},
            aggregator=library.mean_aggregator(),
        )
        ours = pairs_of(fitted)[f"model.layers.1.{norm}"].shift
        assert torch.allclose(ours, theirs.layer_activations[1], atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox", "opt"])
def test_caa_in_the_residual_stream_adds_to_the_output_of_the_block(name):
    plain = model_of(name)
    block = next(iter(block_norms(plain)))
    vector = plain_difference(plain, plain.get_submodule(block))
    fitted = fit_caa(model_of(name), TOKENIZER, ROWS, variant="residual", layer=0)
    ids = token_ids("The driver said that")
    for strength in (1.0, -2.0):
        inside = fitted.base_model.model.get_submodule(block)
        if fitted.peft_type == "LORA":
            with rescale_adapter_scale(fitted, strength):
                steered = heard(fitted, inside, ids)
        else:
            with fitted.steering_strength(strength):
                steered = heard(fitted, inside, ids)
        np.testing.assert_allclose(steered - heard(plain, plain.get_submodule(block), ids),
                                   np.tile(strength * vector, (ids.shape[1], 1)), atol=2e-5)  # fmt: skip
    assert (fitted.peft_type == "LORA") == (name != "gemma3")


@pytest.mark.parametrize("variant", ["norm", "residual"])
def test_the_layer_is_chosen_on_the_validation_questions(variant):
    """By the least sum of the bias and of what is lost of accuracy and of the answers' probability."""
    answers = [TOKENIZER(a, add_special_tokens=False)["input_ids"][0] for a in (" he", " she")]

    def said(model, rows):
        return torch.stack([logits(model, row["prompt"])[0, -1].softmax(-1)[answers] for row in rows]).numpy()

    def plain(model):
        p = said(model, ROWS)
        lean = (p[:, 0] - p[:, 1]) / p.sum(1)
        names = [row["occupation"] for row in ROWS]
        bias = np.mean([abs(lean[[n == name for n in names]].mean()) for name in set(names)])
        right = said(model, SETTLED)
        return bias, (right[:, 0] > right[:, 1]).mean(), p.sum(1).mean()

    base, costs = plain(model_of("llama")), []
    for layer in (0, 1):
        bias, accuracy, mass = plain(fit_caa(model_of("llama"), TOKENIZER, ROWS, variant=variant, layer=layer))
        costs.append(bias + max(0, base[1] - accuracy) + max(0, base[2] - mass))
    fitted = fit_caa(model_of("llama"), TOKENIZER, ROWS, validation=ROWS + SETTLED, variant=variant)
    assert abs(costs[0] - costs[1]) > 1e-3
    assert all(f"layers.{np.argmin(costs)}." in name for name in fitted.targeted_module_names)


# --- ITI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neox"])
def test_iti_equals_a_hook_on_the_input_of_the_output_projection(name):
    """All heads at once, so that no ranking matters: delta = alpha sigma theta of each, from plain activations."""
    plain, alpha = model_of(name), 3.0
    projections = list(attention_outputs(plain, contrast(TOKENIZER, ROWS).positive[0]).values())
    total = 2 * len(projections)
    fitted = fit_iti(model_of(name), TOKENIZER, ROWS, alpha=alpha, heads=total)
    deltas = {}
    for projection in projections:
        module = plain.get_submodule(projection)
        x = {m: np.stack([heard(plain, module, ids, "input")[-1] for ids in texts(m)]) for m in ("anti", "pro")}
        both = {m: values.reshape(len(ROWS), 2, -1) for m, values in x.items()}
        theta = both["anti"].mean(0) - both["pro"].mean(0)
        theta /= np.linalg.norm(theta, axis=1, keepdims=True)
        sigma = np.concatenate([both["anti"], both["pro"]]) * theta
        deltas[projection] = alpha * (sigma.sum(-1).std(0)[:, None] * theta).reshape(-1)
    for strength in (1.0, 0.5):
        handles = [
            plain.get_submodule(projection).register_forward_pre_hook(
                lambda m, a, w=strength, d=delta: (a[0] + torch.tensor(w * d, dtype=torch.float32),)
            )
            for projection, delta in deltas.items()
        ]
        with rescale_adapter_scale(fitted, strength):
            ours = logits(fitted)
        theirs = logits(plain)
        for handle in handles:
            handle.remove()
        assert (theirs - logits(plain)).abs().max() > 1e-2
        assert torch.allclose(ours, theirs, atol=2e-4)


def test_iti_takes_the_heads_whose_probes_are_right():
    """Of four heads one is told the meaning of the answer: only its projection gets a bias."""
    model = model_of("llama")
    projection = model.model.layers[1].self_attn.o_proj
    she = TOKENIZER(" she", add_special_tokens=False)["input_ids"][0]
    swapped = {"nurse", "farmer"}  # for whom "he" is anti
    current = []
    model.model.register_forward_pre_hook(lambda m, a, k: current.append(k["input_ids"]), with_kwargs=True)
    named = [TOKENIZER(name, add_special_tokens=False)["input_ids"][0] for name in swapped]

    def tell(module, args):
        ids = current[-1]
        pro = (ids[:, -1] == she) == torch.isin(ids, torch.tensor(named)).any(1)
        x = args[0].clone()
        x[:, -1, 8] = torch.where(pro, -50.0, 50.0)  # head 1 of block 1
        return (x,)

    projection.register_forward_pre_hook(tell)
    fitted = fit_iti(model, TOKENIZER, ROWS, heads=1, seed=3)
    names = [n for n, p in fitted.named_parameters() if n.endswith("lora_B.default.bias")]
    assert len(names) == 1 and "layers.1.self_attn.o_proj" in names[0]
    bias = dict(fitted.named_parameters())[names[0]].detach()
    direction = projection.weight[:, 8:16].detach() if hasattr(projection, "weight") else None
    plain = model_of("llama").model.layers[1].self_attn.o_proj.weight[:, 8].detach()
    assert direction is None or direction.shape == (16, 8)
    # theta is that feature nearly alone, sigma is 50, and it points to the positive texts.
    assert torch.nn.functional.cosine_similarity(bias, plain, dim=0) > 0.99
    assert bias.norm() == pytest.approx(15 * 50 * float(plain.norm()), rel=0.02)


def test_a_shift_through_weights_with_a_scale_of_their_own():
    """Integers and float8 alike are nothing without it: the layer knows it."""
    torch.manual_seed(0)
    delta = torch.randn(8)
    for kind in (torch.int8, torch.float8_e4m3fn):
        scaled = torch.nn.Linear(8, 4)
        scaled.weight = torch.nn.Parameter((10 * torch.randn(4, 8)).to(kind), requires_grad=False)
        scaled.forward = lambda x, layer=scaled: x @ (0.01 * layer.weight.float()).T + layer.bias
        torch.testing.assert_close(projected(scaled, delta), 0.01 * scaled.weight.float() @ delta)


def test_iti_says_how_many_heads_are_alike():
    said = []
    fit_iti(model_of("llama"), TOKENIZER, ROWS, heads=4, progress=said.append)
    accuracies = sorted(float(number) for number in re.findall(r"right on (\S+) to (\S+);", said[-1])[0])
    last, alike = re.search(r"(\d+) heads are alike at (\S+),", said[-1]).groups()[::-1]
    assert float(last) == accuracies[0] and 1 <= int(alike) <= 4


# --- Linear-AcT ------------------------------------------------------------------------------------------------------


def plain_map(source, target):
    """Per feature a least squares line through the sorted values, by numpy's own solver."""
    pairs = []
    for s, t in zip(np.sort(source, 0).T, np.sort(target, 0).T, strict=True):
        slope, intercept = np.linalg.lstsq(np.stack([s, np.ones_like(s)], 1), t, rcond=None)[0]
        pairs.append((slope - 1, intercept))
    return np.array(pairs).T


def test_transport_is_sorted_least_squares():
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(40, 7)), rng.gamma(2.0, size=(40, 7)) - 3
    a, b = transport_map(torch.tensor(source), torch.tensor(target))
    assert a.dtype == torch.float64
    np.testing.assert_allclose(np.stack([a, b]), plain_map(source, target), atol=1e-10)
    assert (a >= -1).all()  # a slope is never negative


def test_transport_of_a_set_to_itself_is_nothing():
    values = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    a, b = transport_map(values, values[torch.randperm(9)])
    assert not a.any() and b.abs().max() < 1e-15


def test_a_constant_feature_is_shifted():
    source, target = torch.full((5, 1), 3.0), torch.arange(5.0)[:, None]
    a, b = transport_map(source, target)
    assert (a.item(), b.item()) == (0.0, -1.0)


def test_transport_needs_as_many_sources_as_targets():
    with pytest.raises(ValueError, match="as many"):
        transport_map(torch.zeros(3, 2), torch.zeros(4, 2))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("at", ["mean", "last"])
def test_linear_act_is_fitted_site_by_site(name, at):
    plain = model_of(name)
    fitted = fit_linear_act(model_of(name), TOKENIZER, ROWS, at=at)
    pairs = pairs_of(fitted)
    for site in find_sites(plain):  # in these models the order of the modules is that of the forward pass
        module = plain.get_submodule(site.name)
        source, target = (
            np.stack([h.mean(0) if at == "mean" else h[-1] for h in (heard(plain, module, i) for i in texts(meaning))])
            for meaning in ("pro", "anti")
        )
        a, b = plain_map(source, target)
        ours = pairs[site.name]
        np.testing.assert_allclose(ours.slope.detach(), a, atol=2e-3)
        np.testing.assert_allclose(ours.shift.detach(), b, atol=2e-3)
        # The map that was fitted stays on, for the sites behind.
        slope, shift = ours.slope.detach().clone(), ours.shift.detach().clone()
        module.register_forward_hook(lambda m, args, h, a=slope, b=shift: h + a * h + b)


def test_linear_act_of_equal_texts_is_nothing():
    rows = [{**row, "answers": [" he", " she"], "meanings": m} for row in ROWS[:2] for m in (["pro", "anti"],)]
    rows = [{**row, "occupation": name} for row in rows for name in ("nurse", "driver")]
    rows += [{**row, "meanings": ["anti", "pro"], "occupation": row["occupation"] + "s"} for row in rows]
    # Each prompt comes with "he" and with "she" on either side: the two sets are the same.
    fitted = fit_linear_act(model_of("llama"), TOKENIZER, rows)
    for pair in pairs_of(fitted).values():
        assert pair.slope.abs().max() < 1e-5 and pair.shift.abs().max() < 1e-5


def test_what_is_not_incremental_reads_the_base():
    plain = model_of("llama")
    fitted = fit_linear_act(model_of("llama"), TOKENIZER, ROWS, incremental=False)
    site = find_sites(plain)[-1].name
    source, target = (
        np.stack([heard(plain, plain.get_submodule(site), ids).mean(0) for ids in texts(meaning)])
        for meaning in ("pro", "anti")
    )
    np.testing.assert_allclose(pairs_of(fitted)[site].slope.detach(), plain_map(source, target)[0], atol=2e-3)
