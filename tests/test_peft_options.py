"""Options of PEFT: saving, loading, checkpointing, quantised bases, other tuners beside it."""

import copy

import pytest
import torch
from adapted import ids, layers, logits, steered
from models import TEXT, VISION_MODELS, build, randomize
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
)
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version

import peft_dso
from peft_dso import DSOConfig, DSOLayer


# --- options of PEFT -------------------------------------------------------------------------------------------------


def test_modules_to_save(tmp_path):
    model = steered(task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(randomize(build("llama")), tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path, low_cpu_mem_usage, dtype):
    model = steered(task_type="CAUSAL_LM", steering_strength=0.3).to(dtype)
    model.save_pretrained(tmp_path)
    base = randomize(build("llama")).to(dtype)
    loaded = PeftModel.from_pretrained(base, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.get_steering_strength() == 0.3
    loaded.set_steering_strength(0.8)
    model.set_steering_strength(0.8)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(t.is_meta for m in layers(loaded) for t in (*m.parameters(), *m.buffers()))


def test_names_of_parameters_and_of_what_is_saved(tmp_path):
    from safetensors.torch import load_file

    model = steered(task_type="CAUSAL_LM")
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert "base_model.model.model.layers.0.input_layernorm.dso_affine.default.slope" in names
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.input_layernorm.dso_affine.slope" in saved
    assert len(saved) == len(names) and {t.dtype for t in saved.values()} == {torch.float32}


def test_autocast_adapter_dtype():
    base = build("llama", torch.bfloat16)
    model = get_peft_model(base, DSOConfig(), autocast_adapter_dtype=False)
    assert {p.dtype for m in layers(model) for p in m.dso_affine.parameters()} == {torch.bfloat16}
    assert logits(model).dtype == torch.bfloat16
    model = get_peft_model(build("llama", torch.bfloat16), DSOConfig())
    assert {p.dtype for m in layers(model) for p in m.dso_affine.parameters()} == {torch.float32}


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    x, gradients = ids(), []
    for checkpointing in (False, True):
        model = steered().train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.set_steering_strength([0.1, 0.5, 1.0])
        model(x).logits.square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)
        assert one.abs().max() > 0


def test_status():
    model = steered(adapters=("default", "other"))
    status = model.get_model_status()
    assert status.peft_types == {"default": "DSO", "other": "DSO"} and status.active_adapters == ["default"]
    assert status.num_adapter_layers == 4
    per_layer = model.get_layer_status()
    assert len(per_layer) == 4 and per_layer[0].requires_grad == {"default": True, "other": False}


def test_auto_peft_model(tmp_path):
    base = randomize(build("llama"))
    base.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    torch.manual_seed(3)
    model = get_peft_model(base, DSOConfig(init_weights=False, task_type="CAUSAL_LM")).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), logits(model))
    loaded.set_steering_strength(0.0)
    torch.testing.assert_close(logits(loaded), logits(randomize(build("llama"))))


def test_transformers_adapters(tmp_path):
    try:
        check_peft_version(min_version=MIN_PEFT_VERSION)
    except ValueError:
        pytest.skip("the installed transformers refuses the installed peft, whatever the type of the adapter")
    model = steered(task_type="CAUSAL_LM")
    expected = logits(model)
    model.save_pretrained(tmp_path)
    plain = randomize(build("llama"))
    base = logits(plain)
    plain.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(plain), expected)
    peft_dso.set_steering_strength(plain, 0.0)
    assert torch.equal(logits(plain), base)
    with peft_dso.steering_strength(plain, 1.0):
        torch.testing.assert_close(logits(plain), expected)
    assert peft_dso.get_steering_strength(plain) == 0.0
    plain.add_adapter(DSOConfig(init_weights=False), "second")
    plain.set_adapter("second")
    peft_dso.set_steering_strength(plain, 0.5, "second")
    assert peft_dso.get_steering_strength(plain, "second") == 0.5
    assert not torch.equal(logits(plain), base)
    plain.disable_adapters()
    assert torch.equal(logits(plain), base)
    plain.enable_adapters()
    plain.delete_adapter("second")
    with pytest.raises(ValueError, match="second"):
        peft_dso.get_steering_strength(plain, "second")


def test_inject():
    model = randomize(build("llama"))
    base = logits(model)
    model = inject_adapter_in_model(DSOConfig(init_weights=False), model)
    assert len(layers(model)) == 4 and not torch.equal(logits(model), base)
    peft_dso.set_steering_strength(model, 0.0)
    assert torch.equal(logits(model), base)


def test_mixed_models_are_refused():
    with pytest.raises(ValueError, match="DSO"):
        PeftMixedModel(build("llama"), DSOConfig())
    with pytest.raises(ValueError, match="DSO"):
        get_peft_model(build("llama"), DSOConfig(), mixed=True)


def test_on_top_of_lora():
    model = inject_adapter_in_model(
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False), randomize(build("llama"))
    )
    lora = logits(model)
    model = get_peft_model(model, DSOConfig(init_weights=False)).eval()
    assert not torch.equal(logits(model), lora)
    model.set_steering_strength(0.0)
    assert torch.equal(logits(model), lora)


def test_prompt_of_what_is_steered(capsys):
    model = steered()
    model.print_steering_sites()
    printed = capsys.readouterr().out
    assert "model.layers.1.post_attention_layernorm" in printed and "LlamaRMSNorm" in printed
    assert printed.splitlines()[-1] == "4 sites, 128 parameters"


def test_prune_keeps_the_largest():
    model = steered()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, DSOLayer)}
    for place, layer in enumerate(layers.values()):
        layer.base_layer.weight.data.fill_(0.5 + 10 * place)  # a shift counts in units of its norm's gain
    before = {n: m.dso_affine["default"] for n, m in layers.items()}
    sizes = sorted(
        (float(a.slope[i].abs() + a.shift[i].abs() / (0.5 + 10 * place)), n, i)
        for place, (n, a) in enumerate(copy.deepcopy(before).items())
        for i in range(16)
    )
    gone = {(n, i) for _, n, i in sizes[: 64 - 38]}
    assert model.base_model.prune(0.6) == 38  # round(0.6 * 64)
    for n, a in before.items():
        for i in range(16):
            assert ((a.slope[i] == 0) and (a.shift[i] == 0)) == ((n, i) in gone)
    assert model.base_model.prune(0.0) == 0
    with pytest.raises(ValueError, match=r"1\.5"):
        model.base_model.prune(1.5)


def _int8(model):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    return model


def _nf4(model):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and "proj" in name:
            parent, _, child = name.rpartition(".")
            quantised = bitsandbytes.nn.Linear4bit(
                module.in_features, module.out_features, bias=False, quant_type="nf4"
            )
            quantised.load_state_dict(module.state_dict())
            setattr(model.get_submodule(parent), child, quantised.to("cpu"))
    return model


@pytest.mark.parametrize("quantise", [_int8, _nf4])
def test_quantised_base(quantise):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**TEXT, "hidden_size": 64, "intermediate_size": 128})).eval()
    full = logits(base)
    # Gradients first: a forward pass without them packs the weights of bitsandbytes for a kernel that has none.
    model = get_peft_model(quantise(base), DSOConfig(init_weights=False)).train()
    model(ids()).logits.square().sum().backward()
    assert all(
        p.dtype == torch.float32 and p.grad.abs().sum() > 0 for m in layers(model) for p in m.dso_affine.parameters()
    )
    with model.eval().disable_adapter():
        plain = logits(model)
    assert not torch.equal(plain, full)  # it is quantised
    assert not torch.equal(logits(model), plain)
    model.set_steering_strength(0.0)
    assert torch.equal(logits(model), plain)


def test_auto_peft_model_of_a_vision_language_model(tmp_path):
    """It has no class of its own in PEFT: `AutoPeftModel` loads the class that the adapter's config names."""
    config, model_class, _ = VISION_MODELS["llava"]
    torch.manual_seed(0)
    model_class(config()).eval().save_pretrained(tmp_path / "base")
    base = model_class.from_pretrained(tmp_path / "base").eval()
    model = get_peft_model(base, DSOConfig(init_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    assert type(loaded.get_base_model()) is model_class
    torch.testing.assert_close(logits(loaded), logits(model))
