"""What a PEFT user does with LoRA."""

import pytest
import torch
from adapted import ids, layers, logits, steered
from models import build, randomize
from peft import (
    PeftModel,
)


# --- several adapters ------------------------------------------------------------------------------------------------


def test_active_adapters_add():
    model = steered(adapters=("default", "other"))
    layer = layers(model)[0]
    a, b = layer.dso_affine["default"], layer.dso_affine["other"]
    h = torch.randn(2, 3, 16)
    norm = layer.get_base_layer()(h)
    assert model.active_adapters == ["default"]
    torch.testing.assert_close(layer(h), norm + a.slope * norm + a.shift)
    model.base_model.set_adapter(["default", "other"])
    model.set_steering_strength(0.5, "other")
    expected = norm + (a.slope * norm + a.shift) + 0.5 * (b.slope * norm + b.shift)
    torch.testing.assert_close(layer(h), expected)
    assert model.get_steering_strength() == {"default": 1.0, "other": 0.5}
    model.set_steering_strength(0.25)
    assert model.get_steering_strength() == 0.25


def test_switch_disable_delete():
    model = steered(adapters=("default", "other"))
    base = logits(randomize(build("llama")))
    one = logits(model)
    model.set_adapter("other")
    two = logits(model)
    assert not torch.allclose(one, two)
    assert [p.requires_grad for p in layers(model)[0].dso_affine["default"].parameters()] == [False, False]
    assert [p.requires_grad for p in layers(model)[0].dso_affine["other"].parameters()] == [True, True]
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), two)
    model.delete_adapter("other")
    assert "other" not in layers(model)[0].dso_affine
    with pytest.raises(ValueError, match="'other'"):
        model.set_steering_strength(0.1, "other")
    assert torch.equal(logits(model), one)
    assert torch.equal(logits(model.unload()), base)


def test_an_adapter_that_is_not_active_is_frozen():
    model = steered(adapters=("default", "other"))
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trainable and all(".default." in n for n in trainable)


def test_leaving_disable_adapter_keeps_an_inference_adapter_frozen(tmp_path):
    steered(task_type="CAUSAL_LM").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build("llama"), tmp_path)
    assert not any(p.requires_grad for p in model.parameters())
    with model.disable_adapter():
        pass
    assert not any(p.requires_grad for p in model.parameters())
    model = steered()
    with model.disable_adapter():
        assert not any(p.requires_grad for p in model.parameters())
    assert any(p.requires_grad for p in model.parameters())


def test_what_is_chosen_while_the_steering_is_off_is_trained_afterwards():
    model = steered(adapters=("default", "other"))
    model.base_model.disable_adapter_layers()
    model.set_adapter("other")
    model.base_model.enable_adapter_layers()
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"other"}
    model.base_model.disable_adapter_layers()
    model.set_adapter("default", inference_mode=True)
    model.base_model.enable_adapter_layers()
    assert not any(p.requires_grad for p in model.parameters())
    with model.disable_adapter():
        pass
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("names", [["b"], "b"])
def test_what_is_set_while_the_steering_is_off_holds_afterwards(names):
    model = steered(adapters=("default", "b"))

    def trainable():
        return {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}

    for wanted in (True, False):
        with model.disable_adapter():
            model.set_requires_grad("default", not wanted)
            model.set_requires_grad(names, wanted)
        assert trainable() == {"b" if wanted else "default"}


def test_weighted_sum_is_exact():
    model = steered(adapters=("default", "other"))
    model.base_model.add_weighted_adapter(["default", "other"], [0.7, -0.2], "sum")
    model.base_model.set_adapter(["default", "other"])
    model.set_steering_strength(0.7, "default")
    model.set_steering_strength(-0.2, "other")
    together = logits(model)
    model.set_adapter("sum")
    torch.testing.assert_close(logits(model), together, rtol=1e-5, atol=1e-6)
    for adapters, weights, name in (
        (["nobody"], [1.0], "x"), (["default"], [1.0], "sum"), (["default"], [1.0, 2.0], "x"), (["default"],
    [float("nan")], "x")
    ):  # fmt: skip
        with pytest.raises(ValueError):
            model.base_model.add_weighted_adapter(adapters, weights, name)
    with pytest.raises(KeyError, match="half"):  # a module of torch cannot have such a name
        model.base_model.add_weighted_adapter(["default"], [1.0], "half")
    assert set(model.peft_config) == {"default", "other", "sum"}


def test_a_sum_of_adapters_can_be_saved(tmp_path):
    model = steered(adapters=("default", "other"), task_type="CAUSAL_LM")
    model.base_model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "sum")
    model.set_adapter("sum")
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(randomize(build("llama")), tmp_path / "sum").eval()
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("with_strengths", [False, True])
def test_adapter_names_per_row(with_strengths):
    model, x = steered(adapters=("default", "other")), ids(4)
    if with_strengths:
        model.set_steering_strength([0.1, 0.2, 0.3, 0.4], "default")
    names = ["default", "__base__", "other", "default"]
    mixed = logits(model, x, adapter_names=names)
    for i, name in enumerate(names):
        row = x[i : i + 1]
        if name == "__base__":
            with model.disable_adapter():
                alone = logits(model, row)
        else:
            model.set_adapter(name)
            before = model.get_steering_strength()
            if isinstance(before, list):
                model.set_steering_strength(before[i])
            alone = logits(model, row)
            model.set_steering_strength(before)
        torch.testing.assert_close(mixed[i], alone[0], rtol=1e-4, atol=1e-5)
    model.set_adapter("default")
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    logits(model, x, adapter_names=names)
    assert model.active_adapters == ["default"] and trainable == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    with pytest.raises(ValueError, match="nobody"):
        logits(model, x, adapter_names=["nobody"] * 4)


def test_adapter_names_in_generate_with_beams():
    model, x = steered(adapters=("default", "other"), task_type="CAUSAL_LM"), ids(2)
    options = dict(attention_mask=torch.ones_like(x), max_new_tokens=4, num_beams=2, pad_token_id=0, eos_token_id=None)
    mixed = model.generate(input_ids=x, adapter_names=["other", "__base__"], **options)
    options["attention_mask"] = torch.ones(1, 5, dtype=torch.long)
    with model.disable_adapter():
        assert torch.equal(mixed[1:], model.generate(input_ids=x[1:], **options))
    model.set_adapter("other")
    assert torch.equal(mixed[:1], model.generate(input_ids=x[:1], **options))
