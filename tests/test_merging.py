"""Folding into the norms: exact where there is a home for the vectors, refused where there is none."""

import copy

import pytest
import torch
from models import TEXT, TEXT_MODELS, build, randomize
from peft import get_peft_model
from transformers import OlmoConfig, OlmoForCausalLM

from peft_dso import DSOConfig, DSOLayer


LAYER_NORM = ["phi", "gpt2", "gpt_neox", "opt", "falcon"]
RMS_NORM = [name for name in TEXT_MODELS if name not in LAYER_NORM]


def ids(rows=2, length=5, seed=1):
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(model, x):
    extra = {"decoder_input_ids": x} if model.config.is_encoder_decoder else {}
    return model(x, **extra).logits


@pytest.mark.parametrize("strength", [1.0, 0.4, -0.5])
@pytest.mark.parametrize("name", LAYER_NORM)
@torch.no_grad()
def test_merge_is_exact_for_layer_norms(name, strength):
    x = ids()
    model = get_peft_model(randomize(build(name).double()), DSOConfig(init_weights=False)).eval()
    model.set_steering_strength(strength)
    vectors = {n: (m.dso_affine["default"].slope.double(), m.dso_affine["default"].shift.double(), m.get_base_layer())
               for n, m in model.named_modules() if isinstance(m, DSOLayer)}  # fmt: skip
    by_hand = {n: (g.weight * (1 + strength * a), g.bias * (1 + strength * a) + strength * b)
               for n, (a, b, g) in vectors.items()}  # fmt: skip
    steered = run(model, x)
    model.merge_adapter(safe_merge=True)
    for n, (_, _, norm) in vectors.items():
        torch.testing.assert_close(norm.weight, by_hand[n][0])
        torch.testing.assert_close(norm.bias, by_hand[n][1])
    torch.testing.assert_close(run(model, x), steered, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", RMS_NORM)
@torch.no_grad()
def test_slopes_merge_into_rms_norms(name):
    x = ids()
    model = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False, learn_shift=False)).eval()
    model.set_steering_strength(0.7)
    steered = run(model, x)
    stock = model.merge_and_unload()
    assert not any(isinstance(m, DSOLayer) for m in stock.modules())
    torch.testing.assert_close(run(stock, x), steered, rtol=1e-4, atol=1e-5)
    # For Gemma, which multiplies by 1 + g, folding as if it multiplied by g would not do.
    base = randomize(build(name))
    assert (run(base, x) - steered).abs().max() > 1e-3


@pytest.mark.parametrize("name", RMS_NORM)
def test_a_shift_without_a_home_is_refused_and_nothing_changes(name):
    x = ids()
    model = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False)).eval()
    before, steered = copy.deepcopy(model.state_dict()), run(model, x)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match=r"layer.*has no bias.*learn_shift=False"):
            merge()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(run(model, x), steered)
    model.set_steering_strength(0.0)  # nothing to merge, so nothing is lost
    model.merge_adapter()


def test_only_some_sites_without_a_home_still_leave_the_model_whole():
    """The first sites could be merged and the last cannot: none is."""
    model = get_peft_model(randomize(build("gpt2")), DSOConfig(init_weights=False)).eval()
    last = [m for m in model.modules() if isinstance(m, DSOLayer)][-1]
    last.get_base_layer().bias = None
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, ids()
    steered = run(model, x)
    with pytest.raises(ValueError, match="has no bias"):
        model.merge_adapter()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(run(model, x), steered)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_unmerge_restores_bit_for_bit(dtype):
    model = get_peft_model(randomize(build("gpt2")).to(dtype), DSOConfig(init_weights=False)).eval()
    before, x = {k: v.clone() for k, v in model.state_dict().items()}, ids()
    steered = run(model, x)
    model.merge_adapter()
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.unmerge_adapter()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(run(model, x), steered)


@torch.no_grad()
def test_merging_several_and_in_turns():
    base, x = randomize(build("gpt2")), ids()
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    model.add_adapter("other", DSOConfig(init_weights=False))
    model.base_model.set_adapter(["default", "other"])
    model.set_steering_strength(0.6, "default")
    model.set_steering_strength(-0.3, "other")
    steered = run(model, x)
    model.merge_adapter(adapter_names=["default"])
    model.merge_adapter(adapter_names=["other"])
    torch.testing.assert_close(run(model, x), steered, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(run(model, x), run(base, x))


@torch.no_grad()
def test_what_cannot_be_merged_is_said():
    model = get_peft_model(build("gpt2"), DSOConfig(init_weights=False))
    model.set_steering_strength([0.1, 0.2])
    with pytest.raises(ValueError, match=r"per row.*one number"):
        model.merge_adapter()
    model.set_steering_strength(1.0)
    next(m for m in model.modules() if isinstance(m, DSOLayer)).dso_affine["default"].slope[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        model.merge_adapter(safe_merge=True)
    model.unmerge_adapter()
    with pytest.raises(ValueError, match=r"merged.*unmerge_adapter"):
        model = get_peft_model(build("gpt2"), DSOConfig(init_weights=False))
        model.merge_adapter()
        model.set_steering_strength(0.5)


@torch.no_grad()
def test_disabling_a_merged_adapter_gives_the_base():
    base, x = randomize(build("gpt2")), ids()
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(run(model, x), run(base, x))


def two(name="gpt2", **config):
    model = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False, **config), adapter_name="a").eval()
    model.add_adapter("b", DSOConfig(init_weights=False, **config))
    model.base_model.set_adapter(["a", "b"])
    return model


@pytest.mark.parametrize("rows", [False, True])
@torch.no_grad()
def test_what_is_not_merged_still_acts_and_turns(rows):
    model, x = two(), ids()
    model.set_steering_strength(0.6, "a")
    wanted = []
    strengths = [[0.2, 0.9], [0.9, 0.0]] if rows else [0.5, -0.4, 0.0]
    for strength in strengths:
        model.set_steering_strength(strength, "b")
        wanted.append(run(model, x))
    model.merge_adapter(adapter_names=["a"])
    for strength, expected in zip(strengths, wanted, strict=True):
        model.set_steering_strength(strength, "b")
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
    assert (wanted[0] - wanted[1]).abs().max() > 1e-4
    with model.steering_strength(strengths[0], "b"):
        torch.testing.assert_close(run(model, x), wanted[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="'a' is merged"):
        model.set_steering_strength(0.1)


@torch.no_grad()
def test_all_ways_out_of_a_partial_merge():
    base, x = randomize(build("gpt2")), ids()
    plain = run(base, x)

    def alone(model, name):
        model.set_adapter(name)
        return run(model, x)

    model = two()
    expected = {name: alone(model, name) for name in "ab"}
    model.base_model.set_adapter(["a", "b"])
    model.merge_adapter(adapter_names=["a"])
    model.merge_adapter(adapter_names=["a"])  # twice is once
    with model.disable_adapter():
        assert torch.equal(run(model, x), plain)
    model.merge_adapter(adapter_names=["a"])
    with pytest.warns(UserWarning, match="merged"):
        assert torch.equal(alone(model, "b"), expected["b"])
    model.base_model.set_adapter(["a", "b"])
    model.merge_adapter(adapter_names=["a"])
    model.merge_adapter(adapter_names=["b"])
    with pytest.raises(ValueError, match="unmerge"):
        model.delete_adapter("a")
    model.unmerge_adapter()
    model.delete_adapter("a")
    assert torch.equal(run(model, x), expected["b"])
    model.merge_adapter()
    assert torch.equal(run(model.unload(), x), plain)


@torch.no_grad()
def test_merging_the_rest_and_unloading():
    model, x = two(), ids()
    together = run(model, x)
    model.merge_adapter(adapter_names=["b"])
    torch.testing.assert_close(run(model.merge_and_unload(adapter_names=["a"]), x), together, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_merging_and_unmerging_keep_the_tensors_of_the_norms():
    """A captured CUDA graph computes with them."""
    model = two()
    before = [p.data_ptr() for p in model.parameters()]
    model.merge_adapter()
    model.unmerge_adapter()
    assert [p.data_ptr() for p in model.parameters()] == before


@torch.no_grad()
def test_norms_without_a_weight():
    torch.manual_seed(0)
    base = OlmoForCausalLM(OlmoConfig(**TEXT)).eval()
    x, plain = ids(), run(base, ids())
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    layers = {n.removeprefix("base_model.model."): m.dso_affine["default"] for n, m in model.named_modules()
              if isinstance(m, DSOLayer)}  # fmt: skip
    assert len(layers) == 4
    for name, affine in layers.items():
        hook = lambda module, args, h, p=affine: h + 0.7 * (p.slope * h + p.shift)  # noqa: E731
        base.get_submodule(name).register_forward_hook(hook)
    model.set_steering_strength(0.7)
    torch.testing.assert_close(run(model, x), run(base, x))
    assert (run(model, x) - plain).abs().max() > 1e-4
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="no weight"):
            merge()
    model.set_steering_strength(0.0)
    assert torch.equal(run(model, x), plain) and torch.equal(run(model.unload(), x), plain)
