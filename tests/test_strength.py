"""The knob, against a plain computation of h + w (a h + b) with hooks."""

import copy

import numpy as np
import pytest
import torch
from models import TEXT_MODELS, build, randomize
from peft import get_peft_model
from steered import by_hand, ids, pairs, run
from transformers import FSMTConfig, FSMTForConditionalGeneration

import peft_dso
from peft_dso import DSOConfig, DSOLayer


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_steered_output_is_the_formula_and_zero_is_the_base(name):
    base, x = randomize(build(name)), ids()
    plain = run(base, x)
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    vectors = {
        site.removeprefix("base_model.model."): (affine.slope.clone(), affine.shift.clone())
        for site, affine in pairs(model).items()
    }
    assert len(vectors) == TEXT_MODELS[name][3]
    for strength in (1.0, 0.4, -0.5, 2.0):
        model.set_steering_strength(strength)
        expected = by_hand(base, vectors, strength, x)
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
        assert (expected - plain).abs().max() > 1e-4
    model.set_steering_strength(0)
    assert torch.equal(run(model, x), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    x = ids()
    model = get_peft_model(randomize(build("llama")).to(dtype), DSOConfig(init_weights=False)).eval()
    base = run(model.base_model.model, x) if model.set_steering_strength(0) else run(model, x)
    assert base.dtype == dtype
    assert {p.dtype for a in pairs(model).values() for p in a.parameters()} == {torch.float32}
    # A slope below half a unit in the last place of 1.0 in bfloat16 still moves the output.
    for affine in pairs(model).values():
        affine.shift.data.zero_()
        affine.slope.data.fill_(2**-9)
    model.set_steering_strength(1)
    h = torch.full((1, 2, 16), 1.0, dtype=dtype)
    layer = next(m for m in model.modules() if isinstance(m, DSOLayer))
    norm = layer.get_base_layer()(h).float()
    torch.testing.assert_close(layer(h).float(), (norm * (1 + 2**-9)).to(dtype).float(), rtol=0, atol=0)


def test_casting_the_model_leaves_the_pair_alone():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False, steering_strength=0.3))
    before = {n: (a.slope.clone(), a.shift.clone()) for n, a in pairs(model).items()}
    model.to(torch.bfloat16)
    for name, affine in pairs(model).items():
        assert torch.equal(affine.slope, before[name][0]) and torch.equal(affine.shift, before[name][1])
    assert model.get_steering_strength() == 0.3
    model.to("meta")
    assert all(p.is_meta for p in model.parameters())


# --- per row ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_each_row_is_a_run_of_its_own(name):
    model, x = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False)).eval(), ids()
    strengths = [0.0, 0.5, 1.0]
    model.set_steering_strength(strengths)
    together = run(model, x)
    for i, strength in enumerate(strengths):
        model.set_steering_strength(strength)
        torch.testing.assert_close(together[i], run(model, x[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    model.set_steering_strength([0.1, 0.2])
    with pytest.raises(ValueError, match="2 rows and the batch has 3"):
        run(model, x)


def fsmt():
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder")
             for name, value in (("layers", 2), ("ffn_dim", 32), ("attention_heads", 2))}  # fmt: skip
    config = FSMTConfig(
        langs=["en", "de"], src_vocab_size=64, tgt_vocab_size=64, d_model=16, max_position_embeddings=64,
        use_cache=False, **sizes,
    )  # fmt: skip
    return FSMTForConditionalGeneration(config).eval()


class Torch(torch.nn.Module):
    """A model of torch's own blocks."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first, self.embed = batch_first, torch.nn.Embedding(64, 16)
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)

    def forward(self, x):
        return self.encoder(self.embed(x)) if self.batch_first else self.encoder(self.embed(x.T)).transpose(0, 1)


@pytest.mark.parametrize("make", [fsmt, lambda: Torch(False), lambda: Torch(True)], ids=["fsmt", "torch", "first"])
@torch.no_grad()
def test_rows_of_models_that_turn_sequences_and_rows_around(make):
    """Where a row is as long as the batch is large, a mistake raises no error."""
    torch.manual_seed(0)
    model, x = get_peft_model(randomize(make()), DSOConfig(init_weights=False)).eval(), ids(4, 4)
    call = (lambda x: model(x, decoder_input_ids=x.flip(1)).logits) if make is fsmt else model
    strengths = [0.0, 0.5, 1.0, 2.0]
    model.set_steering_strength(strengths)
    together = call(x)
    for i, strength in enumerate(strengths):
        model.set_steering_strength(strength)
        torch.testing.assert_close(together[i], call(x[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_a_batch_that_is_a_multiple_of_the_rows_is_still_refused():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    model.set_steering_strength([0.0, 1.0])
    with pytest.raises(ValueError, match="2 rows and the batch has 4"):
        run(model, ids(4))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams", "returned"]
)
@torch.no_grad()
def test_generate_per_row_with_left_padding_and_cache(name, options):
    model = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False)).eval()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    x, mask = ids(), torch.ones(3, 5, dtype=torch.long)
    if name != "t5":
        x[1, :2], mask[1, :2] = 0, 0
    strengths = [0.0, 0.6, 1.0]
    model.set_steering_strength(strengths)
    together = model.generate(input_ids=x, attention_mask=mask, **options)
    k = options.get("num_return_sequences", 1)
    for i, strength in enumerate(strengths):
        model.set_steering_strength(strength)
        alone = model.generate(input_ids=x[i : i + 1], attention_mask=mask[i : i + 1], **options)
        assert torch.equal(together[i * k : (i + 1) * k], alone)
    # Without the cache, the same tokens: steering is neither lost nor doubled in cached decoding.
    model.set_steering_strength(strengths)
    assert torch.equal(together, model.generate(input_ids=x, attention_mask=mask, use_cache=False, **options))


@torch.no_grad()
def test_beams_from_the_generation_config():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False, task_type="CAUSAL_LM")).eval()
    model.set_steering_strength([0.0, 1.0])
    model.generation_config.num_beams = 2
    out = model.generate(input_ids=ids(2), attention_mask=torch.ones(2, 5), max_new_tokens=2, pad_token_id=0)
    assert out.shape == (2, 7)
    config = copy.deepcopy(model.generation_config)
    config.num_beams = 3
    out = model.generate(
        input_ids=ids(2), attention_mask=torch.ones(2, 5), generation_config=config, max_new_tokens=2, pad_token_id=0
    )
    assert out.shape == (2, 7)
    out = model.generate(ids(2), config, attention_mask=torch.ones(2, 5), max_new_tokens=2, pad_token_id=0)
    assert out.shape == (2, 7)
    assert {m.row_repeats for m in model.modules() if isinstance(m, DSOLayer)} == {1}


def test_a_tower_has_no_rows():
    from models import VISION_MODELS

    config, model_class, _ = VISION_MODELS["llava"]
    model = get_peft_model(model_class(config()), DSOConfig(target_modules=r".*(layer_norm1|input_layernorm)"))
    with pytest.raises(ValueError, match="tower"):
        model.set_steering_strength([0.0, 1.0])
    model.set_steering_strength({r"language_model": [0.0, 1.0]})


# --- setting and reading ---------------------------------------------------------------------------------------------


def test_get_returns_what_was_set():
    model = get_peft_model(build("llama"), DSOConfig(steering_strength=0.25))
    assert model.get_steering_strength() == 0.25
    model.set_steering_strength(torch.tensor([0.1, 0.7]))
    assert model.get_steering_strength() == [0.1, 0.7]
    model.set_steering_strength(0.4)
    model.set_steering_strength({"layers.1": 0.9})
    found = model.get_steering_strength()
    assert found == {
        "model.layers.0.input_layernorm": 0.4,
        "model.layers.0.post_attention_layernorm": 0.4,
        "model.layers.1.input_layernorm": 0.9,
        "model.layers.1.post_attention_layernorm": 0.9,
    }


def test_layer_patterns_match_whole_parts():
    model = get_peft_model(build("llama"), DSOConfig())
    with pytest.raises(ValueError, match="layer'.*matches none"):
        model.set_steering_strength({"layer": 0.5})
    model.set_steering_strength({r"layers\.0\.input_layernorm": 0.5, "layers": 0.2})
    assert set(model.get_steering_strength().values()) == {0.5, 0.2}
    shipped = get_peft_model(build("llama"), DSOConfig(steering_strength={"layers.0": 0.5}))
    assert set(shipped.get_steering_strength().values()) == {0.5, 1.0}
    with pytest.raises(ValueError, match="matches none"):
        get_peft_model(build("llama"), DSOConfig(steering_strength={"nowhere": 0.5}))


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), 1e39, [0.1, float("nan")], [], [[0.1]], torch.ones(2, 2)]
)
def test_values_that_are_refused_change_nothing(wrong):
    model = get_peft_model(build("llama"), DSOConfig(steering_strength=0.25))
    with pytest.raises(ValueError):
        model.set_steering_strength(wrong)
    with pytest.raises(ValueError):
        model.set_steering_strength({"layers.0": 0.9, "layers.1": wrong})
    assert model.get_steering_strength() == 0.25


@pytest.mark.parametrize(
    "wrong", [None, "high", True, object(), ["a"], np.bool_(True), torch.tensor(True), [True, False], 1 + 2j, 10**400]
)
def test_types_that_are_refused(wrong):
    with pytest.raises(TypeError):
        get_peft_model(build("llama"), DSOConfig()).set_steering_strength(wrong)


@torch.no_grad()
def test_a_norm_may_be_called_by_keyword():
    layer = DSOLayer(torch.nn.LayerNorm(4), "default", DSOConfig(init_weights=False), strength=0.5)
    x, pair = torch.randn(2, 3, 4), layer.dso_affine["default"]
    h = torch.nn.functional.layer_norm(x, (4,))
    torch.testing.assert_close(layer(input=x), h + 0.5 * (pair.slope * h + pair.shift))
    layer.merge()
    layer.update_layer("other", DSOConfig(init_weights=False), strength=2.0)
    layer.set_adapter(["default", "other"])
    pairs = [(0.5, pair), (2.0, layer.dso_affine["other"])]
    torch.testing.assert_close(layer(input=x), h + sum(w * (p.slope * h + p.shift) for w, p in pairs))


def test_unknown_adapters_and_plain_models():
    model = get_peft_model(build("llama"), DSOConfig())
    with pytest.raises(ValueError, match="'other'.*default"):
        model.set_steering_strength(0.5, "other")
    with pytest.raises(ValueError, match="no DSO adapter"):
        peft_dso.set_steering_strength(build("llama"), 0.5)


def test_context_manager_restores_also_after_an_exception():
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)), ids()
    model.set_steering_strength({"layers.0": 0.3, "layers.1": 0.6})
    before = model.get_steering_strength()
    with pytest.raises(KeyError), model.steering_strength(0.0):
        assert model.get_steering_strength() == 0.0
        raise KeyError
    assert model.get_steering_strength() == before
    with model.steering_strength(0.5):
        loss = run(model, x).sum()
    loss.backward()  # the graph keeps the strength that it was made with


def test_set_in_inference_mode_and_train_afterwards():
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)), ids()
    with torch.inference_mode():
        model.set_steering_strength([0.2, 0.3, 0.4])
        run(model, x)
    run(model, x).sum().backward()
